"""Slopes of elementwise functions, against the same functions in numbers of 340 digits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from passes.operations.elementwise.atom import Elementwise
from passes.operations.elementwise.records import FUNCTIONS, multipliers_of
from tests.support.oracles.functions import EVERYWHERE, POSITIVE, WITHIN, Restated

STARTS = (-30.0, -3.25, -0.3, -1e-9, 1e-9, 0.5, 2.9, 17.0, 1e3)
STEPS = [0.0, *(10.0**e for e in (-300, -200, -100, -40, *(k / 2 for k in range(-36, 5))))]
# Slopes are of size 1, and smaller ones are what such leave: a hundred rounding errors. Where digits are
# lost, as in a plain quotient of values close to each other, a slope is off by itself.
SLOPE = {torch.float64: 1e-13, torch.float32: 1e-5}
COMPLETE = {torch.float64: 1e-12, torch.float32: 1e-6}


def check(function: Restated, dtype: torch.dtype) -> None:
    atom = Elementwise(function.name, **function.options)
    rule = multipliers_of(atom)
    starts = [start for start in STARTS if start > function.low]
    x0 = torch.tensor([[a for a in starts for _ in STEPS]], dtype=dtype)
    x = x0 + torch.tensor([STEPS * len(starts)], dtype=dtype)
    y, y0 = atom(x), atom(x0)
    (slopes,) = rule((x,), (x0,), y, y0)
    checked = 0
    for slope, a, b, value, value0 in zip(
        *(each[0].tolist() for each in (slopes, x, x0, y, y0)), strict=True
    ):
        if not (math.isfinite(value) and math.isfinite(value0)):
            continue
        expected = function.slope(a, b)
        size = max(1.0, abs(value), abs(value0))
        assert abs(slope * (a - b) - (value - value0)) <= COMPLETE[dtype] * size, (a, b)
        assert abs(slope - expected) <= SLOPE[dtype] * max(abs(expected), 0.1), (
            a,
            b,
            slope,
            float(expected),
        )
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("dtype", SLOPE)
@pytest.mark.parametrize("function", [*EVERYWHERE, *POSITIVE], ids=str)
def test_slope(function: Restated, dtype: torch.dtype) -> None:
    check(function, dtype)


def test_closed_forms_are_tested_for_every_size_of_delta() -> None:
    closed = {each.name for each in FUNCTIONS if each.slope is not None} | {"pow", "powers"}
    assert closed <= {each.name for each in EVERYWHERE + POSITIVE}


@pytest.mark.parametrize("function", WITHIN, ids=str)
def test_slope_within(function: Restated) -> None:
    atom = Elementwise(function.name, **function.options)
    x, x0 = function.low + (function.high - function.low) * torch.rand(2, 60, dtype=torch.float64)
    x0[:10] = x[:10]
    y, y0 = atom(x[None]), atom(x0[None])
    (slopes,) = multipliers_of(atom)((x[None],), (x0[None],), y, y0)
    size = float(torch.cat([y, y0]).abs().max())
    for got, a, b in zip(slopes[0].tolist(), x.tolist(), x0.tolist(), strict=True):
        expected = float(function.slope(a, b, digits=50))
        # Torch's special functions are true to some ten roundings, which a quotient has over its length; its
        # derivative of digamma, all there is at equal ends, is true to 1e-9.
        rounding = 1e-14 * max(1.0, size) / min(1.0, abs(a - b) or 1.0)
        assert got == pytest.approx(expected, rel=1e-13 if a != b else 1e-9, abs=rounding), (a, b)


def slope(name: str, x: float, x0: float, **options: Any) -> float:
    a, b = (torch.tensor([[v]], dtype=torch.float64) for v in (x, x0))
    atom = Elementwise(name, **options)
    return multipliers_of(atom)((a,), (b,), atom(a), atom(b))[0].item()


@pytest.mark.parametrize(
    ("name", "x", "x0", "expected"),
    [
        ("floor", 1.5, 1.25, 0.0),
        ("floor", 2.25, 1.75, 2.0),
        ("floor", 1.5, 1.5, 0.0),
        ("sign", 1.0, -3.0, 0.5),
        ("sign", 2.0, 2.0, 0.0),
        ("round", 3.0, -1.0, 1.0),
        ("abs", 3.0, -1.0, 0.5),
        ("abs", -3.0, -1.0, -1.0),
        ("abs", -3.0, -3.0, -1.0),
        ("relu6", 8.0, 4.0, 0.5),
        ("relu6", 8.0, 7.0, 0.0),
        ("relu6", 3.0, 3.0, 1.0),
        ("hardtanh", 3.0, -1.0, 0.5),
        ("frac", 2.25, 1.75, -1.0),
    ],
)
def test_kinks_and_steps(name: str, x: float, x0: float, expected: float) -> None:
    assert slope(name, x, x0) == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("name", ["log", "log1p", "log2", "log10", "sqrt", "rsqrt", "acosh"])
def test_out_of_the_domain_is_nan(name: str) -> None:
    assert math.isnan(slope(name, -2.5, -1.5))


def test_a_root_out_of_the_domain_is_nan() -> None:
    assert math.isnan(slope("pow", -2.5, -1.5, exponent=0.5))


FAR = ((1e30, -1e30), (1e30, 1e30), (-1e30, -2e30), (1e4, -1e4), (-1e4, -1e4))
# Where they are of other size than 1, or a pair of them differs by more than float32 holds.
OVERFLOWS = {
    *("exp", "exp2", "expm1", "powers", "square", "pow"),
}


@pytest.mark.parametrize("function", EVERYWHERE, ids=str)
def test_large_inputs_are_finite(function: Restated) -> None:
    # Nothing overflows that the function itself does not make overflow.
    atom = Elementwise(function.name, **function.options)
    checked = 0
    for x, x0 in FAR:
        a, b = (torch.tensor([[v]], dtype=torch.float32) for v in (x, x0))
        y, y0 = atom(a), atom(b)
        if not torch.isfinite(y - y0).all() or (y.abs() >= 1e37).any():
            continue
        assert torch.isfinite(multipliers_of(atom)((a,), (b,), y, y0)[0]).all(), (x, x0)
        checked += 1
    assert checked == len(FAR) or (checked >= 1 and function.name in OVERFLOWS)
