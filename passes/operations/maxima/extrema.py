"""Maxima and minima as atoms: over dimensions, and of two operands."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.leaves import Atom
from passes.operations.operation import function_named


class Extremum(Atom):
    """Largest or smallest element over some dimensions.

    Args:
        function: ``"amax"``, ``"amin"``, ``"max"`` or ``"min"``, which differ in their gradients at ties.
        dim: one dimension; several for ``amax`` and ``amin``.
        keepdim: keep them, with size 1.

    Example:
        >>> Extremum("max", 1)(torch.tensor([[1.0, 3.0], [5.0, 2.0]]))
        tensor([3., 5.])

    """

    def __init__(self, function: str, dim: int | tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        self.function = function
        self.dim = dim
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the extreme values of ``input``, any shape."""
        found = function_named(self.function)(input, self.dim, self.keepdim)
        return found if isinstance(found, Tensor) else found[0]

    def extra_repr(self) -> str:
        """Show the function and its dimensions."""
        return f"{self.function}, dim={self.dim}, keepdim={self.keepdim}"


class RunningExtremum(Atom):
    """Largest or smallest element along a dimension, up to each element.

    Args:
        function: ``"cummax"`` or ``"cummin"``.
        dim: the dimension.

    Example:
        >>> RunningExtremum("cummax", 0)(torch.tensor([1.0, 3.0, 2.0]))
        tensor([1., 3., 3.])

    """

    def __init__(self, function: str, dim: int) -> None:
        super().__init__()
        self.function = function
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the values of ``input``, any shape."""
        values: Tensor = function_named(self.function)(input, self.dim)[0]
        return values

    def extra_repr(self) -> str:
        """Show the function and its dimension."""
        return f"{self.function}, dim={self.dim}"


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


class Extremes(NamedTuple):
    """What ``torch.aminmax`` returns."""

    min: Any
    max: Any


class SmallestAndLargest(nn.Module):
    """``torch.aminmax``.

    Args:
        dim: the dimension.
        keepdim: keep it, with size 1.

    Example:
        >>> SmallestAndLargest(0)(torch.tensor([3.0, 2.0])).min
        tensor(2.)

    """

    def __init__(self, dim: int, keepdim: bool = False) -> None:
        super().__init__()
        self.smallest = Extremum("amin", dim, keepdim)
        self.largest = Extremum("amax", dim, keepdim)

    def forward(self, input: Tensor) -> Extremes:
        """Return both values."""
        return Extremes(self.smallest(input), self.largest(input))


class RunningWithIndices(nn.Module):
    """Running extrema with the places where they are found, which are discrete.

    Example:
        >>> RunningWithIndices("cummin", 0)(torch.tensor([3.0, 2.0])).indices
        tensor([0, 1])

    """

    def __init__(self, function: str, dim: int) -> None:
        super().__init__()
        self.running = RunningExtremum(function, dim)

    def forward(self, input: Tensor) -> Found:
        """Return values and indices."""
        atom = self.running
        values = atom(input)
        # The last place up to each that holds its running value.
        here = torch.cumsum(torch.ones_like(input), atom.dim) - 1
        places = torch.cummax(torch.where(input == values, here, 0), atom.dim)[0]
        return Found(values, places.long())
