"""Torch's modules that become atoms, or textbook modules made of atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from passes.leaves import Layout
from passes.operations.contract import Build
from passes.replacement import Replacement
from passes.user_code.hooks import has_hooks


class ModuleReplacement(Replacement):
    """Modules of exactly the types that are listed, unless something was hooked to them.

    A subclass may compute anything, so it is left to the user.

    Args:
        builds: what each type becomes.

    """

    def __init__(self, builds: Mapping[type[nn.Module], Build]) -> None:
        self.builds = builds

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is one of torch's own, as torch made it."""
        if type(module) not in self.builds or has_hooks(module) or "forward" in module.__dict__:
            return False
        return self.builds[type(module)](module) is not None

    def decline(self, module: nn.Module) -> str | None:
        """Never: what does not match is left, and reported with what no rule covers."""
        return None

    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return what ``module`` becomes, in its mode."""
        made = cast("nn.Module", self.builds[type(module)](module)).train(module.training)
        for path, part in made.named_modules():
            if isinstance(part, Layout) and not part.name:
                part.name = ".".join(filter(None, (name, path.rpartition(".")[0])))
        return made
