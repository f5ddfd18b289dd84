"""The atom for functions of two numbers, element by element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom, Layout
from passes.operations.operation import function_named


class Pairwise(Atom):
    """A function of two operands, applied to each pair of elements; shapes broadcast.

    Args:
        function: its name behind ``torch.``.
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
        result: Tensor = function_named(self.function)(a, b, **self.options)
        return result

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])


class AsTensor(Layout):
    """Make a tensor of an operand that may be a number.

    Example:
        >>> AsTensor()(2, torch.ones(3))
        tensor(2.)

    """

    def forward(self, operand: Tensor | float, like: Tensor) -> Tensor:
        """Return the operand, as a tensor in the dtype of ``like`` if it is a number."""
        if isinstance(operand, Tensor):
            return operand
        return torch.full((), operand, dtype=like.dtype, device=like.device)
