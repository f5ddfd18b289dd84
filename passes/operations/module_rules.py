"""Which rule belongs to a module that a model still holds after it was decomposed."""

from __future__ import annotations

from torch import nn

from passes.operations.rules import BoundRule, rule_of
from passes.operations.table import MODULES


def bound_rule_for(module: nn.Module) -> BoundRule | None:
    """Return the rule for an atom, or for a module of torch's that is one atom, else None.

    Such a module stays what it is where something is hooked to it, or where only the recurrent layers
    were rewritten.

    Example:
        >>> bound_rule_for(nn.Linear(1, 1)) is None, bound_rule_for(nn.ReLU()) is None
        (True, False)

    """
    rule = rule_of(module)
    kind = type(module)
    if rule is None and kind in MODULES and "forward" not in module.__dict__:
        becomes = MODULES[kind](module)
        return None if becomes is None else rule_of(becomes)
    return rule
