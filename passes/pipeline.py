"""A small base for passes: conditions are checked on what the pass returns, not on what it got."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

from torch import fx, nn

from passes.errors import PassError


@dataclass(frozen=True)
class PassResult:
    """What a pass made of a model.

    Args:
        model: the transformed model.
        modified: whether anything changed.
        compiled: a GraphModule's code is that of its graph already.

    """

    model: nn.Module
    modified: bool
    compiled: bool = False


class Pass(abc.ABC):
    """One step of the lowering; works on a model that belongs to the pipeline, not to the user.

    Example:
        >>> class Nothing(Pass):
        ...     def run(self, model):
        ...         return PassResult(model, modified=False)
        >>> Nothing()(nn.Identity())
        PassResult(model=Identity(), modified=False, compiled=False)

    """

    @property
    def name(self) -> str:
        """The name of the pass in reports and errors."""
        return type(self).__name__

    @abc.abstractmethod
    def run(self, model: nn.Module) -> PassResult:
        """Transform ``model``."""

    def requires(self, model: nn.Module) -> None:  # noqa: B027 -- optional
        """Raise PassError if ``model`` is not something this pass can take."""

    def ensures(self, model: nn.Module) -> None:  # noqa: B027 -- optional
        """Raise PassError if ``model``, the result, is not what this pass promises."""

    @final
    def __call__(self, model: nn.Module) -> PassResult:
        """Check, run, lint, check again, and recompile."""
        result = self.checked(model)
        if result.modified and not result.compiled and isinstance(result.model, fx.GraphModule):
            result.model.recompile()
        return result

    @final
    def checked(self, model: nn.Module) -> PassResult:
        """Do all but recompile, which the next pass might make superfluous."""
        self.requires(model)
        result = self.run(model)
        if not isinstance(result, PassResult):
            raise PassError(f"{self.name}: run() must return a PassResult, got {type(result).__name__}")
        if result.modified and isinstance(result.model, fx.GraphModule):
            result.model.graph.lint()
        self.ensures(result.model)
        return result


class Pipeline(Pass):
    """Passes in order.

    Args:
        passes: what to run, first to last.

    Example:
        >>> Pipeline()(nn.Identity()).modified
        False

    """

    def __init__(self, *passes: Pass) -> None:
        self.passes = passes

    def run(self, model: nn.Module) -> PassResult:
        """Run each pass on the result of the one before."""
        modified, compiled = False, True
        for each in self.passes:
            result = each.checked(model)
            if result.modified:
                modified, compiled = True, result.compiled
            model = result.model
        return PassResult(model, modified, compiled)
