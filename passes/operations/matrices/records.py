"""Calls of functions of matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from passes.operations.contract import (
    Build,
    Lowering,
    Plain,
    Rule,
    Textbook,
    Varies,
    holds_nodes,
    is_plain,
    pulled,
)
from passes.operations.matrices.atoms import Cholesky, Inverse, MatrixFunction, Solve
from passes.operations.matrices.composed import (
    lower_cond,
    lower_logdet,
    lower_matrix_norm,
    lower_matrix_power,
    lower_slogdet,
    lower_vander,
)
from passes.operations.matrices.covariance import lower_correlation, lower_covariance
from passes.operations.matrices.factors import (
    lower_lstsq,
    lower_lu,
    lower_lu_factor,
    lower_lu_factor_ex,
    lower_lu_with_info,
)
from passes.operations.matrices.rule import along_line_pull, cholesky_pull, inverse_pull, solve_pull
from passes.operations.matrices.solving import (
    lower_cholesky_inverse,
    lower_cholesky_solve,
    lower_solve,
    lower_solve_triangular,
    lower_triangular_solve,
    with_info,
)
from passes.operations.operation import Operation, linear, nonlinear


class Parts(nn.Module):
    """Several results of one function, each by an atom of its own.

    Args:
        made: of the atoms, a named tuple.
        atoms: one for each result.
        before: what becomes of the operand first.

    """

    def __init__(
        self, made: Callable[..., Any], atoms: list[nn.Module], before: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.made = made
        self.parts = nn.ModuleList(atoms)
        self.before = before

    def forward(self, *operands: Any) -> Any:
        """Return all results."""
        if self.before is not None:
            operands = (self.before(operands[0]), *operands[1:])
        return self.made(*(part(*operands) for part in self.parts))


def lower_half(matrix: Any) -> Any:
    """Return the symmetric matrix of which torch reads the lower half."""
    return torch.tril(matrix) + torch.tril(matrix, -1).mT


def upper_half(matrix: Any) -> Any:
    """Likewise of the upper half."""
    return torch.triu(matrix) + torch.triu(matrix, 1).mT


class Eigen(NamedTuple):
    """What ``torch.linalg.eigh`` returns."""

    eigenvalues: Any
    eigenvectors: Any


class Orthogonal(NamedTuple):
    """What ``torch.linalg.qr`` returns."""

    Q: Any
    R: Any


class Singular(NamedTuple):
    """What ``torch.linalg.svd`` returns."""

    U: Any
    S: Any
    Vh: Any


def _named(**names: str) -> Callable[[Lowering], Lowering]:
    """Let a lowering take parameters by other names."""

    def decorate(lower: Lowering) -> Lowering:
        def lower_named(varies: Varies, /, **arguments: Any) -> Textbook | None:
            return lower(varies, **{names.get(name, name): each for name, each in arguments.items()})

        return lower_named

    return decorate


def _inverse(varies: Varies, input: Any) -> Textbook:
    return Inverse(), (input,)


def _matrix(
    function: str, *parts: int | None, made: Callable[..., Any] | None = None, core: int | None = 2
) -> Lowering:
    """Make atoms of a function of one matrix; its other arguments are their options."""

    def lower(varies: Varies, /, input: Any, **options: Any) -> Textbook | None:
        if not all(map(is_plain, options.values())) and holds_nodes(options):
            return None
        if made is None:
            return MatrixFunction(function, core=core, **options), (input,)
        return Parts(made, [MatrixFunction(function, part, core, **options) for part in parts]), (input,)

    return lower


def _cholesky(varies: Varies, input: Any, upper: Any = False) -> Textbook | None:
    if not isinstance(upper, bool):
        return None
    return (Plain(_upper_factor), (input,)) if upper else (Cholesky(), (input,))


def _upper_factor(matrix: Any) -> Any:
    return torch.linalg.cholesky(torch.triu(matrix).mT).mT


def _determinant(varies: Varies, input: Any) -> Textbook:
    return MatrixFunction("linalg.det"), (input,)


def _half(uplo: Any) -> Callable[[Any], Any] | None:
    return {"L": lower_half, "U": upper_half}.get(str(uplo).upper())


def _eigh(varies: Varies, input: Any, UPLO: Any = "L") -> Textbook | None:
    half = _half(UPLO)
    if half is None:
        return None
    parts: list[nn.Module] = [MatrixFunction("linalg.eigh", part, UPLO=UPLO) for part in (0, 1)]
    return Parts(Eigen, parts, half), (input,)


def _eigvalsh(varies: Varies, input: Any, UPLO: Any = "L") -> Textbook | None:
    half = _half(UPLO)
    if half is None:
        return None
    return Parts(_only, [MatrixFunction("linalg.eigvalsh")], half), (input,)


def _only(value: Any) -> Any:
    return value


class Factored(NamedTuple):
    """What ``torch.linalg.lu`` returns."""

    P: Any
    L: Any
    U: Any


def _pseudo_inverse(varies: Varies, input: Any, **options: Any) -> Textbook | None:
    options = {name: value for name, value in options.items() if value is not None}
    if not all(map(is_plain, options.values())):
        return None
    return MatrixFunction("linalg.pinv", **options), (input,)


def _two(function: str, cores: tuple[int, ...] | None, *names: str) -> Lowering:
    """Make an atom of a function of several operands."""

    def lower(varies: Varies, /, **arguments: Any) -> Textbook | None:
        operands = tuple(arguments.pop(name) for name in names)
        if holds_nodes(arguments):
            return None
        core, others = (None, ()) if cores is None else (cores[0], cores[1:])
        return MatrixFunction(function, core=core, others=others, **arguments), operands

    return lower


CALLS: tuple[Operation, ...] = (
    *linear("lu_unpack", fresh=True),
    nonlinear("linalg.inv(input)", "inverse", renamed={"A": "input"}, lower=_inverse),
    nonlinear("linalg.cholesky(input, *, upper=False)", "cholesky", lower=_cholesky),
    nonlinear("cholesky_inverse(input, upper=False)", lower=lower_cholesky_inverse),
    nonlinear("cholesky_solve(input, input2, upper=False)", lower=lower_cholesky_solve),
    nonlinear("linalg.det(input)", "det", renamed={"A": "input"}, lower=_determinant),
    nonlinear("logdet(input)", lower=lower_logdet),
    nonlinear("linalg.slogdet(input)", "slogdet", renamed={"A": "input"}, lower=lower_slogdet),
    nonlinear("linalg.solve(A, B, *, left=True)", lower=_named(A="input", B="other")(lower_solve)),
    nonlinear(
        "linalg.solve_triangular(input, B, *, upper, left=True, unitriangular=False)",
        renamed={"A": "input"},
        lower=lower_solve_triangular,
    ),
    nonlinear(
        "triangular_solve(input, A, upper=True, transpose=False, unitriangular=False)",
        lower=lower_triangular_solve,
    ),
    nonlinear("linalg.matrix_power(input, n)", "matrix_power", lower=lower_matrix_power),
    nonlinear("linalg.matrix_exp(input)", "matrix_exp", lower=_matrix("linalg.matrix_exp")),
    nonlinear("linalg.eigh(input, UPLO='L')", renamed={"A": "input"}, lower=_eigh),
    nonlinear("linalg.eigvalsh(input, UPLO='L')", renamed={"A": "input"}, lower=_eigvalsh),
    nonlinear(
        "linalg.qr(A, mode='reduced')",
        lower=_named(A="input")(_matrix("linalg.qr", 0, 1, made=Orthogonal)),
    ),
    nonlinear("qr(input, some=True)", lower=_matrix("qr", 0, 1, made=Orthogonal)),
    nonlinear(
        "linalg.svd(A, full_matrices=True, *, driver=None)",
        lower=_named(A="input")(_matrix("linalg.svd", 0, 1, 2, made=Singular)),
    ),
    nonlinear("svd(input, some=True, compute_uv=True)", lower=_matrix("svd", 0, 1, 2, made=Singular)),
    nonlinear("linalg.svdvals(A, *, driver=None)", lower=_named(A="input")(_matrix("linalg.svdvals"))),
    nonlinear(
        "linalg.pinv(input, *, atol=None, rtol=None, rcond=None, hermitian=False)",
        "pinverse",
        lower=_pseudo_inverse,
    ),
    nonlinear(
        "linalg.matrix_norm(input, ord='fro', dim=(-2, -1), keepdim=False, *, dtype=None)",
        renamed={"A": "input"},
        lower=lower_matrix_norm,
    ),
    nonlinear("linalg.cond(input, p=None)", lower=lower_cond),
    nonlinear("linalg.vander(x, *, N=None)", lower=lower_vander),
    nonlinear(
        "linalg.householder_product(input, tau)",
        "orgqr",
        renamed={"input2": "tau", "A": "input"},
        lower=_two("linalg.householder_product", (2, 1), "input", "tau"),
    ),
    nonlinear("linalg.tensorinv(input, ind=2)", lower=_matrix("linalg.tensorinv", core=None)),
    nonlinear(
        "linalg.tensorsolve(input, other, dims=None)",
        renamed={"A": "input", "B": "other"},
        lower=_two("linalg.tensorsolve", None, "input", "other"),
    ),
    nonlinear("cov(input, *, correction=1, fweights=None, aweights=None)", lower=lower_covariance),
    nonlinear("corrcoef(input)", lower=lower_correlation),
    nonlinear("linalg.inv_ex(A, *, check_errors=False)", lower=_named(A="input")(with_info(_inverse))),
    nonlinear("linalg.cholesky_ex(input, *, upper=False, check_errors=False)", lower=with_info(_cholesky)),
    nonlinear(
        "linalg.solve_ex(A, B, *, left=True, check_errors=False)",
        lower=_named(A="input", B="other")(with_info(lower_solve)),
    ),
    nonlinear(
        "linalg.lu(A, *, pivot=True)",
        lower=_named(A="input")(_matrix("linalg.lu", 0, 1, 2, made=Factored)),
    ),
    nonlinear("linalg.lu_factor(A, *, pivot=True)", lower=lower_lu_factor),
    nonlinear("linalg.lu_factor_ex(A, *, pivot=True, check_errors=False)", lower=lower_lu_factor_ex),
    nonlinear("lu(A, pivot=True, get_infos=False)", renamed={"input": "A"}, lower=lower_lu),
    nonlinear("_lu_with_info(A, pivot=True, check_errors=True)", lower=lower_lu_with_info),
    nonlinear(
        "lu_solve(input, LU_data, LU_pivots)",
        lower=_two("lu_solve", (2, 2, 1), "input", "LU_data", "LU_pivots"),
    ),
    nonlinear(
        "linalg.lu_solve(LU, pivots, B, *, left=True, adjoint=False)",
        lower=_two("linalg.lu_solve", (2, 1, 2), "LU", "pivots", "B"),
    ),
    nonlinear(
        "linalg.lstsq(input, b, rcond=None, *, driver=None)",
        renamed={"A": "input", "B": "b"},
        lower=lower_lstsq,
    ),
    nonlinear(
        "ormqr(input, input2, input3, left=True, transpose=False)",
        renamed={"tau": "input2", "other": "input3"},
        lower=_two("ormqr", (2, 1, 2), "input", "input2", "input3"),
    ),
    nonlinear("linalg.eig(input)", renamed={"A": "input"}, lower=_matrix("linalg.eig", 0, 1, made=Eigen)),
    nonlinear("linalg.eigvals(input)", renamed={"A": "input"}, lower=_matrix("linalg.eigvals")),
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {
    Inverse: pulled(inverse_pull),
    Solve: pulled(solve_pull),
    Cholesky: pulled(cholesky_pull),
    MatrixFunction: pulled(along_line_pull, complex=True, keeps_integers=True),
}
