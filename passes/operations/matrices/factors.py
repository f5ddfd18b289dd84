"""Factors that are kept in one matrix, what solves by them, and least squares.

All follow the straight line between both ends. Which rows are exchanged, what rank a matrix has and whether
a call failed are discrete; where they differ between the ends, the elements share what that changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.leaves import Layout
from passes.operations.contract import Textbook, Varies, is_number
from passes.operations.matrices.atoms import MatrixFunction


class Discrete(Layout):
    """A result of a function of matrices that has no slope.

    Args:
        atom: of another result of that function.
        part: which result is returned.

    Example:
        >>> Discrete(MatrixFunction("linalg.lu_factor", 0), 1)(torch.tensor([[2.0]]))
        tensor([1], dtype=torch.int32)

    """

    def __init__(self, atom: MatrixFunction, part: int) -> None:
        super().__init__()
        other = MatrixFunction(atom.function, part, atom.core, atom.others, **atom.options)
        # Not a submodule: it is no atom.
        self.find = other.forward

    def forward(self, *operands: Tensor) -> Tensor:
        """Return the result for each matrix in ``operands``."""
        with torch._C.DisableTorchFunction():
            return self.find(*(each.detach() for each in operands))


class LowerUpper(NamedTuple):
    """What ``torch.linalg.lu_factor`` returns."""

    LU: Any
    pivots: Any


class LowerUpperWithInfo(NamedTuple):
    """What ``torch.linalg.lu_factor_ex`` returns."""

    LU: Any
    pivots: Any
    info: Any


class _Factored(nn.Module):
    """Both factors in one matrix, with the rows that were exchanged, and perhaps whether it failed."""

    def __init__(self, made: type[tuple[Any, ...]], discrete: int, **options: Any) -> None:
        super().__init__()
        self.made = made
        self.factors = MatrixFunction("linalg.lu_factor_ex", 0, **options)
        self.discrete = nn.ModuleList(Discrete(self.factors, 1 + k) for k in range(discrete))

    def forward(self, matrix: Any) -> Any:
        found = (self.factors(matrix), *(each(matrix) for each in self.discrete))
        return self.made(*found) if hasattr(self.made, "_fields") else found


def lower_lu_factor(varies: Varies, A: Any, pivot: Any = True) -> Textbook | None:
    """Lower ``torch.linalg.lu_factor``."""
    return (_Factored(LowerUpper, 1, pivot=pivot), (A,)) if isinstance(pivot, bool) else None


def lower_lu_factor_ex(
    varies: Varies, A: Any, pivot: Any = True, check_errors: Any = False
) -> Textbook | None:
    """Lower ``torch.linalg.lu_factor_ex``, whatever it does with errors."""
    if not isinstance(pivot, bool) or not isinstance(check_errors, bool):
        return None
    return _Factored(LowerUpperWithInfo, 2, pivot=pivot, check_errors=check_errors), (A,)


def lower_lu(varies: Varies, A: Any, pivot: Any = True, get_infos: Any = False) -> Textbook | None:
    """Lower ``torch.lu``."""
    if not isinstance(pivot, bool) or not isinstance(get_infos, bool):
        return None
    return _Factored(tuple, 1 + get_infos, pivot=pivot), (A,)


def lower_lu_with_info(
    varies: Varies, A: Any, pivot: Any = True, check_errors: Any = True
) -> Textbook | None:
    """Lower the function in C++ behind ``torch.lu``, which always says whether it failed."""
    return lower_lu(varies, A, pivot, True)


class LeastSquares(NamedTuple):
    """What ``torch.linalg.lstsq`` returns."""

    solution: Any
    residuals: Any
    rank: Any
    singular_values: Any


class _LeastSquares(nn.Module):
    def __init__(self, driver: str | None, rcond: float | None) -> None:
        super().__init__()
        self.driver = driver
        self.solution, self.residuals = (
            MatrixFunction("linalg.lstsq", part, 2, None, rcond=rcond, driver=driver) for part in (0, 1)
        )
        self.rank = Discrete(self.solution, 2)

    def forward(self, a: Any, b: Any) -> LeastSquares:
        nothing = a.reshape(-1)[:0]
        # Torch has no gradient of these singular values; of the same, otherwise called, it has.
        values = torch.linalg.svdvals(a) if self.driver in ("gelsd", "gelss") else nothing
        residuals = nothing if self._solves(a) else self.residuals(a, b)
        return LeastSquares(self.solution(a, b), residuals, self.rank(a, b), values)

    def _solves(self, a: Any) -> bool:
        """Whether torch returns no residuals, as far as it is known: in a graph shapes are not."""
        return self.driver in (None, "gelsy") or (isinstance(a, Tensor) and a.shape[-2] <= a.shape[-1])


def lower_lstsq(varies: Varies, input: Any, b: Any, rcond: Any = None, driver: Any = None) -> Textbook | None:
    """Lower ``torch.linalg.lstsq``."""
    if not (rcond is None or is_number(rcond)) or not isinstance(driver, str | None):
        return None
    return _LeastSquares(driver, rcond), (input, b)
