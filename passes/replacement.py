"""How one kind of module is replaced, or why it is not; ApplyReplacements carries it out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from passes.errors import Decline, PassError
from passes.pipeline import Pass, PassResult


class Replacement(abc.ABC):
    """How modules of one kind are replaced by an ordinary module that computes the same."""

    @abc.abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether this is responsible for ``module``."""

    @abc.abstractmethod
    def decline(self, module: nn.Module) -> str | None:
        """Return why ``module`` cannot be rewritten exactly, or None if it can."""

    @abc.abstractmethod
    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return the replacement for ``module``, which has the qualified name ``name``."""


@dataclass(frozen=True)
class Rewrite:
    """One module that was replaced.

    Args:
        name: its qualified name, ``""`` for the model itself.
        kind: its class name before the rewrite.
        module: what it became.

    """

    name: str
    kind: str
    module: nn.Module


class ApplyReplacements(Pass):
    """Replace each module by what the first that matches builds for it.

    The module keeps its identity and takes the class and the attributes of its replacement, so that
    every reference to it, a plain Python list or an attribute of a helper object among them, leads to
    the rewritten module.

    Args:
        replacements: tried in order.
        modules: every module to look at, by name; names are those of the user's model.

    """

    def __init__(self, replacements: Sequence[Replacement], modules: Mapping[str, nn.Module]) -> None:
        self.replacements = replacements
        self.modules = modules
        self.rewrites: list[Rewrite] = []
        self.declines: list[Decline] = []

    def run(self, model: nn.Module) -> PassResult:
        """Collect all declines before anything is replaced."""
        accepted: list[tuple[str, nn.Module, Replacement]] = []
        for name, module in self.modules.items():
            chosen = next((each for each in self.replacements if each.matches(module)), None)
            if chosen is None:
                continue
            reason = chosen.decline(module)
            if reason is None:
                accepted.append((name, module, chosen))
            else:
                self.declines.append(Decline(name, _kind(module), reason))
        for name, module, chosen in accepted:
            kind = _kind(module)
            become(module, chosen.build(module, name))
            self.rewrites.append(Rewrite(name, kind, module))
        return PassResult(model, modified=bool(accepted))

    def ensures(self, model: nn.Module) -> None:
        """No module that is to be replaced is left."""
        declined = {decline.name for decline in self.declines}
        for name, module in self.modules.items():
            if name not in declined and any(each.matches(module) for each in self.replacements):
                raise PassError(f"{self.name}: {name} ({_kind(module)}) was not rewritten")


def become(module: nn.Module, replacement: nn.Module) -> None:
    """Turn ``module`` into ``replacement`` without changing its identity."""
    object.__setattr__(module, "__class__", type(replacement))
    object.__setattr__(module, "__dict__", replacement.__dict__)


def _kind(module: nn.Module) -> str:
    # A scripted module tells the class it was made from.
    return str(getattr(module, "original_name", None) or type(module).__name__)
