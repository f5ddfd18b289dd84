"""Maxima and minima: as atoms in a graph, and their rule against brute-force Shapley values."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import rewriter
from passes.operations.maxima.extrema import Extremum
from passes.operations.maxima.rule import maximum_multipliers
from passes.operations.pairwise.rule import larger_multipliers, smaller_multipliers
from rewriter import decompose
from tests.support.oracles.shapley import shapley_of_orders
from tests.support.stock import stock

DOUBLE = torch.float64
# Small integers: ties, equal rows and differences of zero are frequent.
WHOLE = st.integers(-3, 3)


@given(st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=6))
def test_shares_are_shapley_values(pairs: list[tuple[int, int]]) -> None:
    x, x0 = (torch.tensor(side, dtype=DOUBLE) for side in zip(*pairs, strict=True))
    got = maximum_multipliers(x, x0)
    expected = shapley_of_orders(max, *([Fraction(v) for v in side] for side in zip(*pairs, strict=True)))
    # Numbers up to 3, a handful of operations.
    torch.testing.assert_close(
        got * (x - x0), torch.tensor([float(v) for v in expected], dtype=DOUBLE), rtol=0, atol=1e-14
    )
    assert bool(((got >= 0) & (got <= 1 + 1e-15)).all())


@given(
    st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2), min_size=1, max_size=60),
    st.sampled_from([torch.float32, DOUBLE]),
)
def test_complete(pairs: list[tuple[float, float]], dtype: torch.dtype) -> None:
    x, x0 = (torch.tensor(side, dtype=dtype) for side in zip(*pairs, strict=True))
    sum_ = (maximum_multipliers(x, x0) * (x - x0)).sum()
    # Up to 60 shares of numbers up to 1000, each rounded a few times.
    tolerance = 64 * torch.finfo(dtype).eps * 1e3
    torch.testing.assert_close(sum_, x.max() - x0.max(), rtol=0, atol=tolerance)


@given(*[WHOLE] * 4)
def test_maximum_and_minimum_are_two_player_shapley_values(a: int, b: int, a0: int, b0: int) -> None:
    x, x0 = ([torch.tensor(float(v), dtype=DOUBLE) for v in side] for side in ((a, b), (a0, b0)))
    for function, rule, game in (
        (torch.maximum, larger_multipliers, max),
        (torch.minimum, smaller_multipliers, min),
    ):
        got = rule(tuple(x), tuple(x0), function(*x), function(*x0))
        expected = shapley_of_orders(game, [Fraction(a), Fraction(b)], [Fraction(a0), Fraction(b0)])
        phi = [(m * (s - r)).item() for m, s, r in zip(got, x, x0, strict=True)]
        assert phi == [float(v) for v in expected]


def test_no_difference_gives_the_derivative() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 0.0]], dtype=DOUBLE)
    assert maximum_multipliers(x, x).tolist() == [[0, 1, 0], [0.5, 0.5, 0]]
    # The limit where others differ: the mean of the derivative over what they may be.
    one = torch.tensor([2.0, 5.0, 0.0], dtype=DOUBLE), torch.tensor([2.0, 1.0, 1.0], dtype=DOUBLE)
    nearly = one[0] + torch.tensor([1e-9, 0, 0], dtype=DOUBLE)
    torch.testing.assert_close(
        maximum_multipliers(*one), maximum_multipliers(nearly, one[1]), rtol=0, atol=1e-9
    )
    assert maximum_multipliers(*one)[0] == 0.5


def test_masked_elements_get_nothing() -> None:
    mask = torch.tensor([False, True, False, True])
    x, x0 = (torch.randn(5, 4, dtype=DOUBLE).masked_fill(mask, -torch.inf) for _ in range(2))
    got = maximum_multipliers(x, x0)
    assert bool((got[:, mask] == 0).all())
    sum_ = (got * (x - x0).masked_fill(mask, 0)).sum(-1)
    torch.testing.assert_close(sum_, x.amax(-1) - x0.amax(-1), rtol=0, atol=1e-15)
    nothing = torch.full((3,), -torch.inf)
    assert bool(maximum_multipliers(nothing, nothing).isfinite().all())


class Of(nn.Module):
    """A function of (B, 5, 4) between two Linears."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(3, 4)
        self.last = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.function(self.first(x)).flatten(1))
        return result


def larger_half(h: Tensor) -> Tensor:
    values, _ = h.max(1)
    return torch.maximum(values, h[:, 0])


def place_only(h: Tensor) -> Tensor:
    found = h.max(dim=1)
    return found.values + 0 * found.indices


def as_numpy_has_it(h: Any) -> Tensor:
    """Name arguments as numpy does, which torch takes although its annotations do not."""
    return h.max(axis=1)[0] + h.amin(axis=1, keepdims=True)[:, 0]


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "amax over time": (lambda h: h.amax(1), 1),
    "amax of several": (lambda h: torch.amax(h, dim=(-1, 1)).unsqueeze(1), 1),
    "amax kept": (lambda h: h - h.amax((1, 2), keepdim=True), 1),
    "amin": (lambda h: h.amin(-1), 1),
    "values by name": (lambda h: h.max(dim=1).values, 1),
    "values by number": (lambda h: torch.max(h, 2, keepdim=True)[0], 1),
    "minimum": (lambda h: torch.min(h, dim=-1)[0], 1),
    "unpacked and maximum": (larger_half, 2),
    "indices": (place_only, 1),
    "of two": (lambda h: torch.max(h[:, :2], h[:, 2:4]), 1),
    "of two, smaller": (lambda h: torch.min(h[:, :1], other=h), 1),
    "fmin": (lambda h: torch.fmin(h, h.tanh()), 2),
    "method": (lambda h: h[:, 1].minimum(h[:, 0]).fmax(h[:, 2]), 2),
    "as numpy has it": (as_numpy_has_it, 2),
    "zeros": (lambda h: torch.max(h, torch.zeros_like(h)), 1),
    "a constant": (lambda h: h.maximum(torch.zeros(4, dtype=h.dtype)), 1),
}


def error_of(values: np.ndarray, model: nn.Module, x: Tensor, background: Tensor) -> float:
    with torch.no_grad():
        f, f0 = model(x).double().numpy(), model(background).double().numpy().mean(0)
    gap = np.abs(values.sum(tuple(range(1, values.ndim - 1))) - (f - f0)).max()
    return float(gap / max(1.0, np.abs(f).max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-10)], ids=str)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_whole_models(case: str, dtype: torch.dtype, tolerance: float) -> None:
    function, atoms = FUNCTIONS[case]
    model = Of(function).to(dtype)
    x, background = torch.randn(3, 5, 3, dtype=dtype), torch.randn(4, 5, 3, dtype=dtype)
    # A row that is its own reference.
    background[0] = x[0]
    model(x)
    rewritten = decompose(model)
    assert sum(each.atoms for each in rewritten.report.operations) == atoms
    assert torch.equal(rewritten(x), model(x))
    by_stock = stock(model, background, x)
    ours = rewriter.DeepExplainer(model, background).shap_values(x)
    assert error_of(by_stock, model, x, background) <= tolerance
    assert error_of(ours, model, x, background) <= tolerance
    np.testing.assert_allclose(ours, by_stock, rtol=0, atol=tolerance)


def test_gradients_where_elements_tie() -> None:
    for function in (lambda h: h.amax(1), lambda h: h.max(1).values):

        def at_zero(h: Tensor, function: Callable[[Tensor], Tensor] = function) -> Tensor:
            return function(h.relu() - h.relu().detach())

        model = Of(at_zero).double()
        x = torch.randn(1, 5, 3, dtype=DOUBLE, requires_grad=True)
        model(x)
        (a,), (b,) = (torch.autograd.grad(each(x).sum(), x) for each in (model, decompose(model)))
        assert torch.equal(a, b)


def test_copies_and_pickles() -> None:
    model = Of(FUNCTIONS["unpacked and maximum"][0])
    x = torch.randn(3, 5, 3)
    model(x)
    rewritten = decompose(model)
    assert torch.equal(copy.deepcopy(rewritten)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(rewritten))(x), model(x))


def test_a_number_of_dimensions_that_the_model_computes_is_left() -> None:
    model = Of(lambda h: h.max(h.dim() - 1)[0])
    x = torch.randn(3, 5, 3)
    model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewritten = decompose(model)
    assert not any(isinstance(module, Extremum) for module in rewritten.modules())
    assert torch.equal(rewritten(x), model(x))


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x - x.max(),
        lambda x: x - torch.min(x),
        lambda x: x - x.amax(),
        lambda x: x - x.amin(dim=()),
        lambda x: x - torch.amax(x, (), True),
    ],
)
def test_over_all_dimensions_rows_of_the_batch_are_mixed(code: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 5, 3)
    model = Of(code)
    model(x)
    rewritten = decompose(model)
    assert [each.reason for each in rewritten.report.uncovered] == ["has no rule"]
    assert torch.equal(rewritten(x), model(x))


def test_shares_stay_finite_for_long_sequences() -> None:
    x, x0 = torch.randn(2, 5000), torch.randn(2, 5000)
    got = maximum_multipliers(x, x0)
    assert bool(got.isfinite().all())
    # The sum of 5000 shares in float32.
    torch.testing.assert_close((got * (x - x0)).sum(-1), x.amax(-1) - x0.amax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x.max(1).values,
        lambda x: x.max(1)[0],
        lambda x: torch.min(x, 1).values + x.max(dim=1)[1],
        lambda x: x.max(1),
    ],
)
def test_values_and_places_are_taken_by_name_or_number(code: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return code(x)

    rewritten, x = decompose(Model()), torch.randn(3, 4)
    assert isinstance(rewritten, fx.GraphModule)
    assert not [each for each in rewritten.report.uncovered if each.operation == "Found"]
    expected, got = code(x), rewritten(x)
    if isinstance(expected, Tensor):
        assert torch.equal(got, expected)
    else:
        assert torch.equal(got.values, expected.values)
        assert torch.equal(got.indices, expected.indices)
