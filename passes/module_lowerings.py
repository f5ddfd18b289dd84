"""The rule for torch's modules that become atoms, or textbook modules made of atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from passes.rule import Rule
from passes.tracing import has_hooks

#: Takes a module and returns what it becomes.
Build = Callable[[Any], nn.Module]


class ModuleRule(Rule):
    """Modules of exactly the types that are listed, unless something was hooked to them.

    A subclass may compute anything, so it is left to the user.

    Args:
        builds: what each type becomes; None to leave a module as it is.

    """

    def __init__(self, builds: Mapping[type[nn.Module], Build]) -> None:
        self.builds = builds

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is one of torch's own, as torch made it."""
        return type(module) in self.builds and not has_hooks(module) and "forward" not in module.__dict__

    def decline(self, module: nn.Module) -> str | None:
        """Never: what does not match is left, and reported with what no rule covers."""
        return None

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return what ``module`` becomes, in its mode."""
        return self.builds[type(module)](module).train(module.training)
