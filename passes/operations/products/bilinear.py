"""Functions that are linear in each of two operands, as atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom
from passes.operations.operation import function_named
from passes.operations.products.contractions import explicit_equation

#: The Einstein sum that a product is, where it is one.
EQUATIONS: Mapping[str, str] = {
    "bmm": "bij,bjk->bik",
    "mm": "ij,jk->ik",
    "mv": "ij,j->i",
    "dot": "i,i->",
    "outer": "i,j->ij",
    "linear": "...i,oi->...o",
}


class Bilinear(Atom):
    """A function of two tensors that is linear in each.

    Args:
        function: its name behind ``torch.`` or ``torch.nn.functional.``.
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
        if self.function == "einsum":
            return torch.einsum(self.options["equation"], a, b)
        result: Tensor = function_named(self.function)(a, b, **self.options)
        return result

    def equation(self, a_dims: int, b_dims: int) -> str | None:
        """Return the Einstein sum for operands of so many dimensions, without dots; None if it is none.

        Example:
            >>> Bilinear("matmul").equation(3, 2), Bilinear("kron").equation(2, 2)
            ('Aij,jk->Aik', None)

        """
        if self.function == "einsum":
            dotted = self.options["equation"]
        elif self.function == "matmul":
            a, b = ("j" if a_dims == 1 else "...ij"), ("j" if b_dims == 1 else "...jk")
            dots = "..." if max(a_dims, b_dims) > 2 else ""
            dotted = f"{a},{b}->{dots}{'i' * (a_dims > 1)}{'k' * (b_dims > 1)}"
        elif self.function in EQUATIONS:
            dotted = EQUATIONS[self.function]
        else:
            return None
        terms, result = explicit_equation(dotted, (a_dims, b_dims))
        return f"{','.join(terms)}->{result}"

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])
