"""Functions of matrices that are made of others: norms, powers, logarithms of determinants."""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Any, NamedTuple

import torch

from passes.operations.contract import Plain, Textbook, Varies


def lower_logdet(varies: Varies, input: Any) -> Textbook:
    """Lower ``torch.logdet``."""
    return Plain(_log_of_determinant), (input,)


def _log_of_determinant(matrix: Any) -> Any:
    return torch.log(torch.linalg.det(matrix))


def lower_slogdet(varies: Varies, input: Any) -> Textbook:
    """Lower ``torch.linalg.slogdet``."""
    return Plain(_sign_and_log), (input,)


class SignAndLog(NamedTuple):
    """What ``torch.linalg.slogdet`` returns."""

    sign: Any
    logabsdet: Any


def _sign_and_log(matrix: Any) -> Any:
    determinant = torch.linalg.det(matrix)
    return SignAndLog(torch.sign(determinant), torch.log(torch.abs(determinant)))


def lower_matrix_power(varies: Varies, input: Any, n: Any) -> Textbook | None:
    """Lower ``torch.linalg.matrix_power``."""
    if type(n) is not int:
        return None
    return Plain(partial(_power, n)), (input,)


def _power(n: int, matrix: Any) -> Any:
    if n == 0:
        return torch.diag_embed(torch.ones_like(torch.diagonal(matrix, dim1=-2, dim2=-1)))
    base = torch.linalg.inv(matrix) if n < 0 else matrix
    return reduce(torch.matmul, [base] * abs(n)) if abs(n) > 1 else base.clone()


def lower_matrix_norm(
    varies: Varies, input: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: Any = False, dtype: Any = None
) -> Textbook | None:
    """Lower ``torch.linalg.matrix_norm``."""
    dims = tuple(dim) if isinstance(dim, list | tuple) else ()
    if len(dims) != 2 or not all(type(each) is int for each in dims) or not isinstance(keepdim, bool):
        return None
    if dtype is not None or ord not in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
        return None
    if ord == "fro":
        return Plain(partial(torch.linalg.vector_norm, dim=dims, keepdim=keepdim)), (input,)
    return Plain(partial(matrix_norm, ord, dims, keepdim)), (input,)


def matrix_norm(order: Any, dims: tuple[int, int], keepdim: bool, matrix: Any) -> Any:
    """Return a norm of matrices, made of operations that have rules.

    Example:
        >>> matrix_norm(1, (-2, -1), False, torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        tensor(4.)

    """
    moved = torch.movedim(matrix, dims, (-2, -1))
    if order in (1, -1, math.inf, -math.inf):
        sums = torch.abs(moved).sum(-2 if order in (1, -1) else -1)
        found = torch.amax(sums, -1) if order > 0 else torch.amin(sums, -1)
    else:
        values = torch.linalg.svdvals(moved)
        found = values.sum(-1) if order == "nuc" else torch.select(values, -1, 0 if order > 0 else -1)
    if not keepdim:
        return found
    return torch.movedim(found.unsqueeze(-1).unsqueeze(-1), (-2, -1), dims)


def lower_cond(varies: Varies, input: Any, p: Any = None) -> Textbook | None:
    """Lower ``torch.linalg.cond``."""
    if p not in (None, "fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
        return None
    return Plain(partial(_condition, p)), (input,)


def _condition(p: Any, matrix: Any) -> Any:
    if p in (None, 2, -2):
        values = torch.linalg.svdvals(matrix)
        largest, smallest = torch.select(values, -1, 0), torch.select(values, -1, -1)
        return smallest / largest if p == -2 else largest / smallest
    return torch.linalg.matrix_norm(matrix, p) * torch.linalg.matrix_norm(torch.linalg.inv(matrix), p)


def lower_vander(varies: Varies, x: Any, N: Any = None) -> Textbook | None:
    """Lower ``torch.linalg.vander``."""
    return (Plain(partial(_powers, N)), (x,)) if N is None or (type(N) is int and N > 0) else None


def _powers(count: int | None, x: Any) -> Any:
    x = torch.atleast_1d(x)  # type: ignore[no-untyped-call]
    column = x.unsqueeze(-1)
    if count is None:
        factors = (column + torch.zeros_like(x).unsqueeze(-2))[..., 1:]
    else:
        factors = torch.cat([column] * (count - 1), -1) if count > 1 else column[..., :0]
    return torch.cumprod(torch.cat([torch.ones_like(column), factors], -1), -1)
