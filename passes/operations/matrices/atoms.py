"""Functions of matrices as atoms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom
from passes.operations.operation import function_named


class Inverse(Atom):
    """Inverse of each matrix.

    Example:
        >>> Inverse()(torch.tensor([[2.0]]))
        tensor([[0.5000]])

    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the inverses of ``input``, (*, n, n)."""
        inverse: Tensor = torch.linalg.inv(input)
        return inverse


class Solve(Atom):
    """Solution of linear equations, a vector or the columns of a matrix.

    Args:
        left: whether the matrix stands left of what is sought.

    Example:
        >>> Solve()(torch.tensor([[2.0]]), torch.tensor([6.0]))
        tensor([3.])

    """

    def __init__(self, left: bool = True) -> None:
        super().__init__()
        self.left = left

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        """Return the solution for matrices, (*, n, n), and right sides, (*, n) or (*, n, k)."""
        solution: Tensor = torch.linalg.solve(input, other, left=self.left)
        return solution

    def extra_repr(self) -> str:
        """Show the side."""
        return f"left={self.left}"


class Cholesky(Atom):
    """Lower triangular factor of each symmetric matrix, of which torch reads the lower half.

    Example:
        >>> Cholesky()(torch.tensor([[4.0]]))
        tensor([[2.]])

    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the factors of ``input``, (*, n, n)."""
        factor: Tensor = torch.linalg.cholesky(input)
        return factor


class MatrixFunction(Atom):
    """One result of a function of matrices, whose rule follows the straight line between its operands.

    Args:
        function: its name behind ``torch.``.
        part: which of its results, None if it has one.
        core: how many dimensions of the first operand belong to one matrix; None if all do.
        others: likewise of the other operands; None if they differ from that by as much as their dimensions.
        options: further arguments of the function, known before the model runs.

    Example:
        >>> MatrixFunction("linalg.qr", part=1)(torch.tensor([[2.0]])).abs()
        tensor([[2.]])

    """

    def __init__(
        self,
        function: str,
        part: int | None = None,
        core: int | None = 2,
        others: tuple[int, ...] | None = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.function = function
        self.part = part
        self.core = core
        self.others = others
        self.options = options

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the result for each matrix in ``operands``."""
        found = function_named(self.function)(*operands, **self.options)
        result: Tensor = found if self.part is None else found[self.part]
        return result

    def extra_repr(self) -> str:
        """Show the function and its options."""
        options = (f"{key}={value}" for key, value in self.options.items())
        own = f"part={self.part}, core={self.core}, others={self.others}"
        return ", ".join([self.function, own, *options])
