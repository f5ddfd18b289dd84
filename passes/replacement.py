"""Rules say how one kind of module is rewritten, or why it is not; ApplyRules carries them out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from passes.errors import Decline, PassError
from passes.pipeline import Pass, PassResult


class Rule(abc.ABC):
    """How modules of one kind are replaced by an ordinary module that computes the same."""

    @abc.abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether this rule is responsible for ``module``."""

    @abc.abstractmethod
    def decline(self, module: nn.Module) -> str | None:
        """Return why ``module`` cannot be rewritten exactly, or None if it can."""

    @abc.abstractmethod
    def build(self, module: nn.Module, name: str) -> nn.Module:
        """Return the replacement for ``module``, which has the qualified name ``name``."""


@dataclass(frozen=True)
class Rewrite:
    """One module that a rule replaced.

    Args:
        name: its qualified name, ``""`` for the model itself.
        kind: its class name before the rewrite.
        module: what it became.

    """

    name: str
    kind: str
    module: nn.Module


class ApplyRules(Pass):
    """Replace each module by what the first matching rule builds for it.

    The module keeps its identity and takes the class and the attributes of its replacement, so that
    every reference to it, a plain Python list or an attribute of a helper object among them, leads to
    the rewritten module.

    Args:
        rules: tried in order.
        modules: every module to look at, by name; names are those of the user's model.

    """

    def __init__(self, rules: Sequence[Rule], modules: Mapping[str, nn.Module]) -> None:
        self.rules = rules
        self.modules = modules
        self.rewrites: list[Rewrite] = []
        self.declines: list[Decline] = []

    def run(self, model: nn.Module) -> PassResult:
        """Collect all declines before anything is replaced."""
        accepted: list[tuple[str, nn.Module, Rule]] = []
        for name, module in self.modules.items():
            rule = next((rule for rule in self.rules if rule.matches(module)), None)
            if rule is None:
                continue
            reason = rule.decline(module)
            if reason is None:
                accepted.append((name, module, rule))
            else:
                self.declines.append(Decline(name, _kind(module), reason))
        for name, module, rule in accepted:
            kind = _kind(module)
            become(module, rule.build(module, name))
            self.rewrites.append(Rewrite(name, kind, module))
        return PassResult(model, modified=bool(accepted))

    def ensures(self, model: nn.Module) -> None:
        """No module that a rule accepts is left."""
        declined = {decline.name for decline in self.declines}
        for name, module in self.modules.items():
            if name not in declined and any(rule.matches(module) for rule in self.rules):
                raise PassError(f"{self.name}: {name} ({_kind(module)}) was not rewritten")


def become(module: nn.Module, replacement: nn.Module) -> None:
    """Turn ``module`` into ``replacement`` without changing its identity."""
    object.__setattr__(module, "__class__", type(replacement))
    object.__setattr__(module, "__dict__", replacement.__dict__)


def _kind(module: nn.Module) -> str:
    # A scripted module tells the class it was made from.
    return str(getattr(module, "original_name", None) or type(module).__name__)
