"""Vector norms, variances, similarities: what they compute, and their rules in exact arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.norms.variance import Variance
from passes.operations.norms.vector_norms import Normalize, VectorNorm
from passes.operations.table import rule_of
from rewriter import decompose
from tests.support.additive import assert_additive
from tests.support.compare import assert_close, assert_same_model
from tests.support.models.softmaxes import Call
from tests.support.oracles.rows import length, restated_norm, restated_normalize, restated_variance

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

DOUBLE = torch.float64
NUMBER = st.floats(-100, 100)


# Of (2, 3, 4), with how many atoms each becomes.
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "x.norm": (lambda x: x.norm(dim=-1), 1),
    "x.norm p": (lambda x: x.norm(1, 1, True), 1),
    "x.norm of two": (lambda x: x.norm(p=2, dim=(1, 2)), 1),
    "x.norm inf": (lambda x: x.norm(math.inf, dim=1), 2),
    "torch.norm": (lambda x: torch.norm(x, dim=2, keepdim=True), 1),
    "torch.norm fro": (lambda x: torch.norm(x, "fro", (1, 2)), 1),
    "torch.linalg.norm": (lambda x: torch.linalg.norm(x, dim=1), 1),
    "torch.linalg.norm ord": (lambda x: torch.linalg.norm(x, 1, dim=-1, keepdim=True), 1),
    "torch.linalg.norm fro": (lambda x: torch.linalg.norm(x, "fro", (-1, -2)), 1),
    "torch.linalg.vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=(2, 1)), 1),
    "torch.linalg.vector_norm inf": (lambda x: torch.linalg.vector_norm(x, math.inf, -1, True), 2),
    "F.normalize": (lambda x: F.normalize(x), 1),
    "F.normalize p": (lambda x: F.normalize(x, p=1, dim=-1, eps=0.1), 1),
    "x.var": (lambda x: x.var(1), 1),
    "x.var unbiased": (lambda x: x.var(2, False, True), 1),
    "x.var correction": (lambda x: x.var(dim=(1, 2), correction=2), 1),
    "torch.var": (lambda x: torch.var(x, dim=-1, unbiased=False, keepdim=True), 1),
    "x.std": (lambda x: x.std(dim=1, correction=0), 1),
    "torch.std": (lambda x: torch.std(x, [1, 2], keepdim=True), 1),
    "torch.var_mean": (lambda x: torch.cat(torch.var_mean(x, 1), -1), 1),
    "torch.std_mean": (lambda x: torch.cat(torch.std_mean(x, dim=(1,), keepdim=True), -1), 1),
    "F.cosine_similarity": (lambda x: F.cosine_similarity(x, 2 * x.flip(2) + 1, dim=2), 3),
    "torch.cosine_similarity": (lambda x: torch.cosine_similarity(x, x.mean(2, True) + 2, 1, 0.5), 3),
    "cosine with a constant": (lambda x: F.cosine_similarity(x, torch.ones_like(x), -1), 3),
    "F.pairwise_distance": (lambda x: F.pairwise_distance(x, x.flip(2)), 1),
    "torch.pairwise_distance": (lambda x: torch.pairwise_distance(x, x[:, :1] + 1, 1, 0.1, True), 1),
}
# What is left as it is: unknown orders, and what mixes the rows of a batch.
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "of all": lambda x: x.norm(),
    "matrix norm": lambda x: torch.linalg.norm(x, 1, (1, 2)),
    "variance of all": lambda x: x.var(),
    "biased variance of all": lambda x: x.var(False),
    "computed dimension": lambda x: x.std(x.dim() - 1),
}


def atoms(model: nn.Module) -> list[Atom]:
    return [module for module in model.modules() if isinstance(module, Atom)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_computes_the_same(name: str, dtype: torch.dtype) -> None:
    function, count = CALLS[name]
    model = Call(function)
    exact = decompose(model)
    assert len(atoms(exact)) == count
    x = 1 + 2 * torch.randn(2, 3, 4, dtype=dtype)
    assert_same_model(model, exact, x)
    # Norms are sums of a few numbers.
    assert_close(exact(x), model(x), {torch.float64: 1e-14, torch.float32: 1e-6}[dtype], name)


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name: str) -> None:
    model = Call(LEFT[name])
    exact = decompose(model)
    x = torch.randn(2, 3, 4)
    assert torch.equal(exact(x), model(x))
    assert not [each for each in atoms(exact) if isinstance(each, Variance | VectorNorm | Normalize)]


@pytest.mark.parametrize("kind", [nn.CosineSimilarity(dim=2), nn.PairwiseDistance(1.0, keepdim=True)])
def test_modules(kind: nn.Module) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.compare = kind

        def forward(self, x: Tensor) -> Tensor:
            if float(x.detach().sum()) > 1e9:
                return x
            y: Tensor = self.compare(x, x.flip(2) + 1)
            return y

    exact = decompose(Pair())
    assert type(exact.compare) is not type(kind)
    assert_same_model(Pair(), exact, torch.randn(2, 3, 4, dtype=DOUBLE))


@pytest.mark.parametrize("name", CALLS)
def test_additive(name: str) -> None:
    function, _ = CALLS[name]
    body = nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), Call(function), Call(lambda y: y.reshape(y.shape[0], -1))
    )
    x, background = torch.randn(4, 3, 4), torch.randn(7, 3, 4)
    model = nn.Sequential(*body, nn.Linear(body(x).shape[1], 2))
    assert_additive(model, x, background)


def test_copies() -> None:
    model = Call(lambda x: F.cosine_similarity(x, x.flip(1)) + x.std(1) + x.norm(dim=1))
    exact = decompose(model)
    x = torch.randn(2, 4)
    assert torch.equal(copy.deepcopy(exact)(x), exact(x))


# The rules


def pulled(atom: Atom, x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Return multipliers of single rows: for ``d``, (K, *output shape), (K, *shape)."""
    x, x0 = x[None, None], x0[None, None]
    (got,) = rule_of(atom).pull((x,), (x0,), atom(x[0])[None], atom(x0[0])[None], d[:, None, None])
    return got[:, 0, 0]


ROWS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=5)


def sides(pairs: list[tuple[float, float]]) -> tuple[list[list[Fraction]], list[Tensor]]:
    rows = list(zip(*pairs, strict=True))
    return [[Fraction(v) for v in row] for row in rows], [torch.tensor(row, dtype=DOUBLE) for row in rows]


@pytest.mark.parametrize("order", [1, 2])
@given(ROWS)
def test_norm_as_restated(order: int, pairs: list[tuple[float, float]]) -> None:
    (x, x0), (a, b) = sides(pairs)
    (got,) = pulled(VectorNorm(order, (-1,)), a, b, torch.ones(1, dtype=DOUBLE))
    # Numbers below 1e-154 have no square in float64, nor a root in 40 digits.
    if length(1, x) + length(1, x0) > 1e-20 or order == 1:
        expected = torch.tensor([float(v) for v in restated_norm(order, x, x0)], dtype=DOUBLE)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    assert (got.abs() <= 1 + 1e-15).all()


@pytest.mark.parametrize("order", [1, 2])
@given(ROWS, st.sampled_from([1e-3, 50.0]))
def test_normalize_as_restated(order: int, pairs: list[tuple[float, float]], eps: float) -> None:
    (x, x0), (a, b) = sides(pairs)
    got = pulled(Normalize(order, (-1,), eps), a, b, torch.eye(len(x), dtype=DOUBLE))
    expected = torch.tensor(restated_normalize(order, x, x0, eps), dtype=DOUBLE)
    if length(1, x) + length(1, x0) > 1e-20:
        # Multipliers are up to 2 / eps; where norms are close to each other and to eps, their difference
        # is rounded.
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12 / eps)


@given(ROWS, st.integers(0, 1), st.booleans())
def test_variance_as_restated(pairs: list[tuple[float, float]], correction: int, take_root: bool) -> None:
    if len(pairs) <= correction:
        return
    (x, x0), (a, b) = sides(pairs)
    (got,) = pulled(Variance((-1,), correction, root=take_root), a, b, torch.ones(1, dtype=DOUBLE))
    expected, below = restated_variance(x, x0, correction, take_root)
    if below < 1e-9:
        return
    # Deviations of numbers up to 100 are rounded to 1e-14.
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=DOUBLE), rtol=1e-10, atol=1e-12 / min(1.0, float(below))
    )


ATOMS: list[Atom] = [
    VectorNorm(1, (-1,)),
    VectorNorm(2, (-1,)),
    Normalize(1, (-1,)),
    Normalize(2, (-1,)),
    Variance((-1,)),
    Variance((-1,), 0, root=True),
]


@pytest.mark.parametrize("atom", ATOMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reference", ["any", "zero", "same", "near", "constant"])
def test_complete_and_finite(reference: str, dtype: torch.dtype, atom: Atom) -> None:
    x = torch.randn(5, dtype=dtype)
    x0 = {
        "any": torch.randn(5, dtype=dtype),
        "zero": torch.zeros(5, dtype=dtype),
        "same": x,
        "near": x + 1e-6,
        "constant": torch.full((5,), 0.3, dtype=dtype),
    }[reference]
    for a, b in ((x, x0), (x0, x), (x0, x0)):
        y, y0 = atom(a), atom(b)
        d = torch.eye(5, dtype=dtype) if y.dim() else torch.ones(1, dtype=dtype)
        got = pulled(atom, a, b, d)
        assert got.isfinite().all()
        error = (got * (a - b)).sum(-1) - (y - y0)
        # Everything is around 1, also where a norm is 0.
        assert error.abs().max() <= 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("atom", ATOMS, ids=str)
def test_at_no_delta_is_the_gradient(atom: Atom) -> None:
    x = torch.randn(5, dtype=DOUBLE)
    expected = torch.autograd.functional.jacobian(atom, x)
    d = torch.eye(5, dtype=DOUBLE) if expected.dim() == 2 else torch.ones(1, dtype=DOUBLE)
    torch.testing.assert_close(pulled(atom, x, x, d), expected.reshape(len(d), 5), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dims", [(1,), (-1,), (3, 1), (-1, 1), (2, -1), (1, 2, 3)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_dimensions_count_in_the_users_tensor(dims: tuple[int, ...], keepdim: bool) -> None:
    x, x0 = torch.randn(2, 1, 2, 3, 4, 5, dtype=DOUBLE)
    for atom in (
        VectorNorm(1, dims, keepdim),
        VectorNorm(2, dims, keepdim),
        Variance(dims, 1, keepdim),
        Variance(dims, 0, keepdim, root=True),
        Normalize(2, dims),
    ):
        y, y0 = atom(x[0])[None], atom(x0[0])[None]
        d = torch.randn(6, *y.shape, dtype=DOUBLE)
        (got,) = rule_of(atom).pull((x,), (x0,), y, y0, d)
        expected = (d * (y - y0)).reshape(6, 2, -1).sum(-1)
        # 60 products of numbers up to 10 in each row.
        torch.testing.assert_close((got * (x - x0)).reshape(6, 2, -1).sum(-1), expected, rtol=0, atol=1e-12)


def test_a_row_of_zeros_is_additive() -> None:
    x, background = torch.randn(5, 4), torch.randn(7, 4)
    x[0], background[:3] = 0, 0
    for function in (
        lambda x: F.normalize(x, dim=1),
        lambda x: F.cosine_similarity(x, x.flip(1) + 1)[:, None],
    ):
        model = nn.Sequential(Call(function), nn.Flatten())
        assert_additive(model, x, background)
