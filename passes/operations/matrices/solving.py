"""Linear equations, and what solves them, as calls of inverses and solutions."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from passes.operations.contract import Lowering, Plain, Textbook, Varies, is_plain
from passes.operations.matrices.atoms import Solve


class _WithInfo(NamedTuple):
    values: Any
    info: Any


def with_info(lower: Lowering) -> Lowering:
    """Lower a function that returns beside its result whether it failed, which it did not."""

    def lower_checked(varies: Varies, check_errors: Any = False, **arguments: Any) -> Textbook | None:
        textbook = lower(varies, **arguments)
        if textbook is None or not is_plain(check_errors):
            return None
        module, operands = textbook
        return WithInfo(module), operands

    return lower_checked


class WithInfo(nn.Module):
    """A function of matrices with whether it failed, which it did not.

    Args:
        function: what it is.

    """

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Any) -> Any:
        """Return the result, and 0 for each matrix."""
        values = self.function(*operands)
        return _WithInfo(values, torch.zeros_like(operands[0].sum((-2, -1))).int())


def lower_solve(varies: Varies, input: Any, other: Any, left: Any = True) -> Textbook | None:
    """Lower ``torch.linalg.solve``."""
    return (Solve(left), (input, other)) if isinstance(left, bool) else None


def lower_solve_triangular(
    varies: Varies, input: Any, B: Any, upper: Any, left: Any = True, unitriangular: Any = False
) -> Textbook | None:
    """Lower ``torch.linalg.solve_triangular``."""
    if not all(isinstance(each, bool) for each in (upper, left, unitriangular)):
        return None
    return Plain(partial(_solved_triangular, upper, left, unitriangular)), (input, B)


def _solved_triangular(upper: bool, left: bool, unit: bool, a: Any, b: Any) -> Any:
    a = _triangle(a, upper, unit)
    return torch.linalg.solve(a, b, left=left)


def _triangle(a: Any, upper: bool, unit: bool) -> Any:
    if not unit:
        return torch.triu(a) if upper else torch.tril(a)
    ones = torch.diag_embed(torch.ones_like(torch.diagonal(a, dim1=-2, dim2=-1)))
    return (torch.triu(a, 1) if upper else torch.tril(a, -1)) + ones


class _TriangularSolution(NamedTuple):
    solution: Any
    cloned_coefficient: Any


def lower_triangular_solve(
    varies: Varies, input: Any, A: Any, upper: Any = True, transpose: Any = False, unitriangular: Any = False
) -> Textbook | None:
    """Lower ``torch.triangular_solve``."""
    if not all(isinstance(each, bool) for each in (upper, transpose, unitriangular)):
        return None

    def solved(b: Any, a: Any) -> Any:
        triangle = _triangle(a, upper, unitriangular)
        solution = torch.linalg.solve(triangle.mT if transpose else triangle, b)
        return _TriangularSolution(solution, torch.zeros_like(solution[..., :1]) + a)

    return Plain(solved), (input, A)


def lower_cholesky_solve(varies: Varies, input: Any, input2: Any, upper: Any = False) -> Textbook | None:
    """Lower ``torch.cholesky_solve``."""

    def solved(b: Any, factor: Any) -> Any:
        return torch.linalg.solve(_squared(factor, upper), b)

    return (Plain(solved), (input, input2)) if isinstance(upper, bool) else None


def lower_cholesky_inverse(varies: Varies, input: Any, upper: Any = False) -> Textbook | None:
    """Lower ``torch.cholesky_inverse``."""

    def inverse(factor: Any) -> Any:
        return torch.linalg.inv(_squared(factor, upper))

    return (Plain(inverse), (input,)) if isinstance(upper, bool) else None


def _squared(factor: Any, upper: bool) -> Any:
    lower = torch.triu(factor).mT if upper else torch.tril(factor)
    return torch.matmul(lower, lower.mT)
