"""What modules become, and which rule an atom has: what all families say, merged."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from passes.operations.catalogue import FAMILIES
from passes.operations.contract import BoundRule, Build, Rule
from passes.operations.registered import REGISTERED

#: What each of torch's modules becomes, if a rewrite knows better than to leave it.
MODULES: Mapping[type[nn.Module], Build] = {
    kind: build for family in FAMILIES for kind, build in family.MODULES.items()
}
#: The rule of each type of atom of this package.
RULES: Mapping[type[nn.Module], Rule] = {
    kind: rule for family in FAMILIES for kind, rule in family.RULES.items()
}


def rule_of(module: nn.Module) -> BoundRule | None:
    """Return the rule for an atom of a known type, else None.

    Example:
        >>> from passes.operations.elementwise.atom import Elementwise
        >>> rule_of(nn.Linear(1, 1)) is None, rule_of(Elementwise("exp")).elementwise
        (True, True)

    """
    # An atom that answers isinstance for one of torch's modules derives from both.
    for kind in type(module).__mro__:
        rule = RULES.get(kind) or REGISTERED.get(kind)
        if rule is not None:
            return rule(module)
    return None


def rule_of_module(module: nn.Module) -> BoundRule | None:
    """Return the rule for an atom, or for a module of torch's that is one atom, else None.

    Such a module stays what it is where something is hooked to it, or where only the recurrent layers
    were rewritten.

    Example:
        >>> rule_of_module(nn.Linear(1, 1)) is None, rule_of_module(nn.ReLU()) is None
        (True, False)

    """
    rule = rule_of(module)
    kind = type(module)
    if rule is None and kind in MODULES and "forward" not in module.__dict__:
        becomes = MODULES[kind](module)
        return None if becomes is None else rule_of(becomes)
    return rule
