"""Slopes of elementwise functions, against the same functions in numbers of 340 digits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch

from passes.operations.elementwise.atom import Elementwise
from passes.operations.elementwise.records import FUNCTIONS, multipliers_of

mp = mpmath.mp
Restated = Callable[[Any], Any]
number = mpmath.mpf
CUBIC = number("0.044715")
SCALE, ALPHA = number(1.0507009873554804934193349852946), number(1.6732632423543772848170429916717)


def gaussian(x: Any) -> Any:
    return (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2


def tangent_gate(x: Any) -> Any:
    return (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + CUBIC * x**3))) / 2


SMOOTH: list[tuple[str, dict[str, Any], Restated]] = [
    ("exp", {}, mpmath.exp),
    ("exp2", {}, lambda x: number(2) ** x),
    ("expm1", {}, mpmath.expm1),
    ("erf", {}, mpmath.erf),
    ("erfc", {}, mpmath.erfc),
    ("square", {}, lambda x: x * x),
    ("silu", {}, lambda x: x / (1 + mpmath.exp(-x))),
    ("mish", {}, lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))),
    ("gelu", {}, lambda x: x * gaussian(x)),
    ("gelu", {"approximate": "tanh"}, lambda x: x * tangent_gate(x)),
    ("softplus", {"beta": 2.0}, lambda x: x if x > 10 else mpmath.log1p(mpmath.exp(2 * x)) / 2),
    ("softsign", {}, lambda x: x / (1 + abs(x))),
    ("tanhshrink", {}, lambda x: x - mpmath.tanh(x)),
    ("logsigmoid", {}, lambda x: -mpmath.log1p(mpmath.exp(-x))),
    ("elu", {"alpha": 1.5}, lambda x: x if x > 0 else number(1.5) * mpmath.expm1(x)),
    ("celu", {"alpha": 2.0}, lambda x: x if x > 0 else 2 * mpmath.expm1(x / 2)),
    ("selu", {}, lambda x: SCALE * (x if x > 0 else ALPHA * mpmath.expm1(x))),
    ("pow", {"exponent": 3}, lambda x: x**3),
    ("pow", {"exponent": 4}, lambda x: x**4),
    ("powers", {"base": 5}, lambda x: number(5) ** x),
    ("powers", {"base": 0.3}, lambda x: number(0.3) ** x),
    # Without a closed form.
    ("sin", {}, mpmath.sin),
    ("cos", {}, mpmath.cos),
    ("atan", {}, mpmath.atan),
    ("asinh", {}, mpmath.asinh),
    ("special.ndtr", {}, gaussian),
    ("abs", {}, lambda x: abs(x)),
    ("leaky_relu", {"negative_slope": 0.01}, lambda x: x if x > 0 else x * number(0.01)),
    ("hardtanh", {"min_val": -1.1, "max_val": 2.2}, lambda x: min(max(x, number(-1.1)), number(2.2))),
    ("hardswish", {}, lambda x: x * min(max(x + 3, 0), 6) / 6),
]
POSITIVE: list[tuple[str, dict[str, Any], Restated]] = [
    ("log", {}, mpmath.log),
    ("log2", {}, lambda x: mpmath.log(x) / mpmath.log(2)),
    ("log10", {}, lambda x: mpmath.log(x) / mpmath.log(10)),
    ("log1p", {}, mpmath.log1p),
    ("sqrt", {}, mpmath.sqrt),
    ("rsqrt", {}, lambda x: 1 / mpmath.sqrt(x)),
    ("reciprocal", {}, lambda x: 1 / x),
    ("pow", {"exponent": 2.5}, lambda x: x ** number(2.5)),
    ("pow", {"exponent": -3}, lambda x: x**-3),
]
STARTS = (-30.0, -3.25, -0.3, -1e-9, 1e-9, 0.5, 2.9, 17.0, 1e3)
STEPS = [0.0, *(10.0**e for e in (-300, -200, -100, -40, *(k / 2 for k in range(-36, 5))))]
# Slopes are of size 1, and smaller ones are what such leave: a hundred rounding errors. Where digits are
# lost, as in a plain quotient of values close to each other, a slope is off by itself.
SLOPE = {torch.float64: 1e-13, torch.float32: 1e-5}
COMPLETE = {torch.float64: 1e-12, torch.float32: 1e-6}


@functools.cache
def restated(index: int, positive: bool, x: float, x0: float) -> Any:
    """Return the slope of the chord, or the derivative, in many digits."""
    function = (POSITIVE if positive else SMOOTH)[index][2]
    with mp.workdps(340):
        a, b = number(x), number(x0)
        return mpmath.diff(function, a) if a == b else (function(a) - function(b)) / (a - b)


def check(index: int, positive: bool, dtype: torch.dtype) -> None:
    name, options, _ = (POSITIVE if positive else SMOOTH)[index]
    atom = Elementwise(name, **options)
    rule = multipliers_of(atom)
    starts = [abs(start) for start in STARTS if start > 0] if positive else STARTS
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
        expected = restated(index, positive, a, b)
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
@pytest.mark.parametrize("index", range(len(SMOOTH)), ids=[f"{name} {o}" for name, o, _ in SMOOTH])
def test_slope(index: int, dtype: torch.dtype) -> None:
    check(index, False, dtype)


@pytest.mark.parametrize("dtype", SLOPE)
@pytest.mark.parametrize("index", range(len(POSITIVE)), ids=[f"{name} {o}" for name, o, _ in POSITIVE])
def test_slope_of_positive_numbers(index: int, dtype: torch.dtype) -> None:
    check(index, True, dtype)


def test_closed_forms_are_tested() -> None:
    closed = {each.name for each in FUNCTIONS if each.slope is not None} | {"pow", "powers"}
    assert closed <= {name for name, _, _ in SMOOTH + POSITIVE}


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


@pytest.mark.parametrize("name", ["log", "log2", "log10", "sqrt", "rsqrt", "lgamma", "acosh"])
def test_out_of_the_domain_is_nan(name: str) -> None:
    assert math.isnan(slope(name, -2.5, -1.5)) or name == "lgamma"
    assert math.isnan(slope("pow", -2.5, -1.5, exponent=0.5))
    assert math.isnan(slope("log1p", -3.0, -2.0))


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _ in SMOOTH])
def test_large_inputs_are_finite(name: str, options: dict[str, Any]) -> None:
    # Nothing overflows that the function itself does not make overflow.
    for x, x0 in ((1e30, -1e30), (1e30, 1e30), (-1e30, -2e30), (1e4, -1e4), (-1e4, -1e4)):
        atom = Elementwise(name, **options)
        a, b = (torch.tensor([[v]], dtype=torch.float32) for v in (x, x0))
        y, y0 = atom(a), atom(b)
        if torch.isfinite(y - y0).all() and (y.abs() < 1e37).all():
            assert torch.isfinite(multipliers_of(atom)((a,), (b,), y, y0)[0]).all(), (x, x0)
