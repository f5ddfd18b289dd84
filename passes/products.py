"""Products of two operands that both vary, as atoms."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from passes.atoms import Atom, Mul
from passes.lower_calls import Lowering, Textbook, Varies

#: What a :class:`Bilinear` may compute: functions that are linear in each of two operands.
PRODUCTS: Mapping[str, Callable[..., Tensor]] = {
    "matmul": torch.matmul,
    "bmm": torch.bmm,
}


class Bilinear(Atom):
    """A function of two tensors that is linear in each.

    Args:
        function: a key of :data:`PRODUCTS`.
        options: further arguments of the function.

    Example:
        >>> Bilinear("matmul")(torch.ones(2, 3), torch.ones(3, 2)).shape
        torch.Size([2, 2])

    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product of ``a`` and ``b``."""
        return PRODUCTS[self.function](a, b, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])


def _mul(varies: Varies, a: Any, b: Any) -> Textbook | None:
    return (Mul(), (a, b)) if varies(a) and varies(b) else None


def _matmul(varies: Varies, a: Any, b: Any) -> Textbook | None:
    return (Bilinear("matmul"), (a, b)) if varies(a) and varies(b) else None


CALLS: Mapping[Any, Lowering] = {
    operator.mul: _mul,
    torch.mul: _mul,
    "mul": _mul,
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    "matmul": _matmul,
}
