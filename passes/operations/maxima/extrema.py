"""Maxima and minima as atoms: over dimensions, and of two operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from passes.leaves import Atom
from passes.operations.contract import Lowering, Plain, Textbook, Varies

#: What an :class:`Extremum` may compute; ``max`` and ``amax`` differ in their gradients where elements tie.
EXTREMA: Mapping[str, Callable[..., Any]] = {
    "amax": torch.amax,
    "amin": torch.amin,
    "max": torch.max,
    "min": torch.min,
}

_TENSORS = {torch.zeros_like, torch.ones_like, torch.full_like, torch.tensor, "new_zeros", "new_full"}


class Extremum(Atom):
    """Largest or smallest element over some dimensions.

    Args:
        function: a key of :data:`EXTREMA`.
        dim: one dimension; several for ``amax`` and ``amin``; None for all.
        keepdim: keep them, with size 1.

    Example:
        >>> Extremum("max", 1)(torch.tensor([[1.0, 3.0], [5.0, 2.0]]))
        tensor([3., 5.])

    """

    def __init__(
        self, function: str, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
    ) -> None:
        super().__init__()
        self.function = function
        self.dim = dim
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the extreme values of ``input``, any shape."""
        function = EXTREMA[self.function]
        if self.dim is None:
            values: Tensor = function(input)
            return values.reshape((1,) * input.dim()) if self.keepdim else values
        found = function(input, self.dim, self.keepdim)
        return found if isinstance(found, Tensor) else found[0]

    def extra_repr(self) -> str:
        """Show the function and its dimensions."""
        return f"{self.function}, dim={self.dim}, keepdim={self.keepdim}"


class Found(NamedTuple):
    """What ``torch.max`` over a dimension returns."""

    values: Any
    indices: Any


class ExtremumWithIndices(nn.Module):
    """Extreme values over one dimension, with the places where they are found, which are steps.

    Example:
        >>> ExtremumWithIndices("min", 0)(torch.tensor([3.0, 2.0])).indices
        tensor(1)

    """

    def __init__(self, function: str, dim: int, keepdim: bool = False) -> None:
        super().__init__()
        self.extremum = Extremum(function, dim, keepdim)

    def forward(self, input: Tensor) -> Found:
        """Return values and indices."""
        atom = self.extremum
        place = torch.argmax if atom.function == "max" else torch.argmin
        return Found(atom(input), place(input, atom.dim, atom.keepdim))  # type: ignore[arg-type]


def _extremum(function: str) -> Lowering:
    def lower(varies: Varies, input: Any, dim: Any = (), keepdim: Any = False) -> Textbook | None:
        if isinstance(dim, fx.Node) or not isinstance(keepdim, bool):
            return None
        dims = tuple(dim) if isinstance(dim, list | tuple) else dim
        return Extremum(function, None if dims == () else dims, keepdim), (input,)

    return lower


def _extremum_or_pair(function: str) -> Lowering:
    of_two = torch.maximum if function == "max" else torch.minimum

    def pair(*operands: Any) -> Textbook:
        return Plain(of_two), operands

    def lower(
        varies: Varies, input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None
    ) -> Textbook | None:
        if other is not None:
            return pair(input, other)
        if isinstance(dim, Tensor):
            return pair(input, dim)
        if isinstance(dim, fx.Node):
            # A number that the model computes, unless it is a tensor for certain.
            tensor = varies(dim) or dim.op == "get_attr" or dim.target in _TENSORS
            return pair(input, dim) if tensor else None
        if dim is None:
            return Extremum(function), (input,)
        if not isinstance(keepdim, bool):
            return None
        return ExtremumWithIndices(function, dim, keepdim), (input,)

    return lower


CALLS: Mapping[Any, Lowering] = {
    **dict.fromkeys((torch.amax, "amax"), _extremum("amax")),
    **dict.fromkeys((torch.amin, "amin"), _extremum("amin")),
    **dict.fromkeys((torch.max, "max"), _extremum_or_pair("max")),
    **dict.fromkeys((torch.min, "min"), _extremum_or_pair("min")),
}
