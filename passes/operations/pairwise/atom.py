"""Functions of two numbers, element by element, as atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom

#: What a :class:`Pairwise` may compute, of two tensors whose shapes broadcast.
PAIRWISE: Mapping[str, Callable[..., Tensor]] = {
    "div": torch.div,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
}


class Pairwise(Atom):
    """A function of two operands that both vary, applied to each pair of elements; shapes broadcast.

    Args:
        function: a key of :data:`PAIRWISE`.
        options: further arguments of the function, plain numbers or names.

    Example:
        >>> Pairwise("div")(torch.tensor([6.0]), torch.tensor([3.0]))
        tensor([2.])

    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the function of ``a`` and ``b``, of the shape they broadcast to."""
        return PAIRWISE[self.function](a, b, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])
