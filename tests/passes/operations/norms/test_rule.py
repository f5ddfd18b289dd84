"""The rule of norms, restated, complete, and held against Shapley values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passes.leaves import Atom
from passes.operations.norms.standardize import Standardize
from passes.operations.table import rule_of
from tests.support.oracles.rows import restated_standardize
from tests.support.oracles.shapley import shapley_of_subsets

DOUBLE = torch.float64


def pulled(atom: Atom, x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Return multipliers of single rows: for ``d``, (K, *output shape), (K, *shape)."""
    x, x0 = x[None, None], x0[None, None]
    (got,) = rule_of(atom).pull((x,), (x0,), atom(x[0])[None], atom(x0[0])[None], d[:, None, None])
    return got[:, 0, 0]


@pytest.mark.parametrize("centred", [True, False])
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=6),
    st.sampled_from([1e-5, 0.1, 3.0]),
)
def test_rule_as_restated(centred: bool, pairs: list[tuple[float, float]], eps: float) -> None:
    x, x0 = (list(side) for side in zip(*pairs, strict=True))
    atom = Standardize(-1, eps, centred)
    got = pulled(
        atom,
        torch.tensor(x, dtype=DOUBLE),
        torch.tensor(x0, dtype=DOUBLE),
        torch.eye(len(x), dtype=DOUBLE),
    )
    # Deviations of numbers up to 100 are rounded to 1e-14, and divided by at least sqrt(eps) = 3e-3.
    expected = torch.tensor(restated_standardize(x, x0, eps, centred), dtype=DOUBLE)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reference", ["any", "constant", "zero", "far", "same", "near"])
def test_complete(reference: str, dtype: torch.dtype, centred: bool) -> None:
    for atom in (Standardize(-1, 1e-5, centred), Standardize((6,), 1e-5, centred)):
        x = torch.randn(6, dtype=dtype)
        x0 = {
            "any": torch.randn(6, dtype=dtype),
            "constant": torch.full((6,), 0.3, dtype=dtype),
            "zero": torch.zeros(6, dtype=dtype),
            "far": 1e4 * torch.randn(6, dtype=dtype),
            "same": x,
            "near": x + 1e-6,
        }[reference]
        got = pulled(atom, x, x0, torch.eye(6, dtype=dtype))
        assert got.isfinite().all()
        error = (got * (x - x0)).sum(-1) - (atom(x) - atom(x0))
        # Outputs are around 1, and so is all that is summed: nothing is divided by a variance of 0. But
        # torch itself sees rounding where a row is constant, and multiplies it by 1 / sqrt(1e-5).
        rounding = 0.3 * 1e-5**-0.5 if reference == "constant" else 32
        assert error.abs().max() <= rounding * torch.finfo(dtype).eps


@pytest.mark.parametrize("atom", [Standardize(-1), Standardize((5,), None, centred=False)])
def test_at_no_delta_is_the_gradient(atom: Atom) -> None:
    x = torch.randn(5, dtype=DOUBLE)
    expected = torch.autograd.functional.jacobian(atom, x)
    got = pulled(atom, x, x, torch.eye(5, dtype=DOUBLE))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_a_shift_of_a_row_changes_nothing() -> None:
    x, x0 = torch.randn(2, 5, dtype=DOUBLE)
    atom, d = Standardize(-1), torch.eye(5, dtype=DOUBLE)
    # The mean of numbers around 100 is rounded to 1e-14.
    torch.testing.assert_close(pulled(atom, x + 100, x0 - 100, d), pulled(atom, x, x0, d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("over", [1, 2, 3, -1, -2, (4, 5), (5,)])
def test_dimensions_count_in_the_users_tensor(over: int | tuple[int, ...]) -> None:
    x, x0 = torch.randn(2, 1, 2, 3, 4, 5, dtype=DOUBLE)
    atom = Standardize(over)
    d = torch.randn(6, 1, 2, 3, 4, 5, dtype=DOUBLE)
    y, y0 = atom(x[0]), atom(x0[0])
    (got,) = rule_of(atom).pull((x,), (x0,), y[None], y0[None], d)
    # 60 products of numbers around 1 in each row.
    expected = (d * (y - y0)).flatten(3).sum((1, 3))
    torch.testing.assert_close((got * (x - x0)).flatten(3).sum((1, 3)), expected, rtol=0, atol=1e-12)


def by_reciprocal(x: Tensor, x0: Tensor, d: Tensor, eps: float) -> Tensor:
    """Split the product with the reciprocal of the root instead."""
    c, c0 = x - x.mean(), x0 - x0.mean()
    r, r0 = ((each.square().mean() + eps).rsqrt() for each in (c, c0))
    through = d * (r + r0) / 2 - (c + c0) / len(x) * (r * r0) ** 2 / (r + r0) * (d * (c + c0) / 2).sum()
    return (through - through.mean()) * (x - x0)


@pytest.mark.parametrize(("spread", "gain"), [(1.0, 1.0), (1e-3, 20.0)])
def test_nearer_to_shapley_values_than_a_product_with_the_reciprocal(spread: float, gain: float) -> None:
    ours = other = 0.0
    atom = Standardize(-1)
    for _ in range(60):
        x, x0 = torch.randn(5, dtype=DOUBLE), spread * torch.randn(5, dtype=DOUBLE)
        d = torch.randn(5, dtype=DOUBLE)

        def weighted(z: Tensor, d: Tensor = d) -> Tensor:
            return (atom(z) * d).sum()

        exact = shapley_of_subsets(weighted, x, x0)
        ours += (pulled(atom, x, x0, d[None])[0] * (x - x0) - exact).norm().item()
        other += (by_reciprocal(x, x0, d, 1e-5) - exact).norm().item()
    assert gain * ours < other
