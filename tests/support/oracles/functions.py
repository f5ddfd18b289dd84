"""Functions of one number, in numbers of as many digits as asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath

number = mpmath.mpf
CUBIC = number("0.044715")
SCALE, ALPHA = number(1.0507009873554804934193349852946), number(1.6732632423543772848170429916717)


@dataclass(frozen=True)
class Restated:
    """A function of one number.

    Args:
        name: of the record, or of what an atom computes.
        function: of a number of mpmath's.
        options: what the atom is made with.
        low: from where on it is defined.
        high: up to where.

    """

    name: str
    function: Callable[[Any], Any]
    options: dict[str, Any] = field(default_factory=dict)
    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return f"{self.name} {self.options or ''}".strip()

    def slope(self, x: float, x0: float, digits: int = 340) -> Any:
        """Return the slope of the chord, or the derivative."""
        with mpmath.mp.workdps(digits):
            a, b = number(x), number(x0)
            if a == b:
                return mpmath.diff(self.function, a)
            return (self.function(a) - self.function(b)) / (a - b)


def gaussian(x: Any) -> Any:
    return (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2


def tangent_gate(x: Any) -> Any:
    return (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + CUBIC * x**3))) / 2


def clip(x: Any, low: Any, high: Any) -> Any:
    return min(max(x, number(low)), number(high))


def truncated(x: Any) -> Any:
    return mpmath.floor(x) if x >= 0 else mpmath.ceil(x)


def multigamma(x: Any) -> Any:
    """Of order 3 (James 1964)."""
    return 3 * mpmath.log(mpmath.pi) / 2 + sum(mpmath.loggamma(x - number(j) / 2) for j in range(3))


#: Smooth, or with kinks, over all numbers.
EVERYWHERE: list[Restated] = [
    Restated("exp", mpmath.exp),
    Restated("exp2", lambda x: number(2) ** x),
    Restated("expm1", mpmath.expm1),
    Restated("erf", mpmath.erf),
    Restated("erfc", mpmath.erfc),
    Restated("square", lambda x: x * x),
    Restated("silu", lambda x: x / (1 + mpmath.exp(-x))),
    Restated("mish", lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))),
    Restated("gelu", lambda x: x * gaussian(x)),
    Restated("gelu", lambda x: x * tangent_gate(x), {"approximate": "tanh"}),
    Restated("softplus", lambda x: x if x > 10 else mpmath.log1p(mpmath.exp(2 * x)) / 2, {"beta": 2.0}),
    Restated("softsign", lambda x: x / (1 + abs(x))),
    Restated("tanhshrink", lambda x: x - mpmath.tanh(x)),
    Restated("logsigmoid", lambda x: -mpmath.log1p(mpmath.exp(-x))),
    Restated("elu", lambda x: x if x > 0 else number(1.5) * mpmath.expm1(x), {"alpha": 1.5}),
    Restated("celu", lambda x: x if x > 0 else 2 * mpmath.expm1(x / 2), {"alpha": 2.0}),
    Restated("selu", lambda x: SCALE * (x if x > 0 else ALPHA * mpmath.expm1(x))),
    Restated("pow", lambda x: x**3, {"exponent": 3}),
    Restated("pow", lambda x: x**4, {"exponent": 4}),
    Restated("powers", lambda x: number(5) ** x, {"base": 5}),
    Restated("powers", lambda x: number(0.3) ** x, {"base": 0.3}),
    # Without a closed form.
    Restated("sin", mpmath.sin),
    Restated("cos", mpmath.cos),
    Restated("atan", mpmath.atan),
    Restated("asinh", mpmath.asinh),
    Restated("special.ndtr", gaussian),
    Restated("abs", lambda x: abs(x)),
    Restated("leaky_relu", lambda x: x if x > 0 else x * number(0.01), {"negative_slope": 0.01}),
    Restated("hardtanh", lambda x: clip(x, -1.1, 2.2), {"min_val": -1.1, "max_val": 2.2}),
    Restated("hardsigmoid", lambda x: clip(x / 6 + number(1) / 2, 0, 1)),
    Restated("hardswish", lambda x: x * min(max(x + 3, 0), 6) / 6),
]
#: Over positive numbers.
POSITIVE: list[Restated] = [
    Restated("log", mpmath.log, low=0.0),
    Restated("log2", lambda x: mpmath.log(x) / mpmath.log(2), low=0.0),
    Restated("log10", lambda x: mpmath.log(x) / mpmath.log(10), low=0.0),
    Restated("log1p", mpmath.log1p, low=0.0),
    Restated("sqrt", mpmath.sqrt, low=0.0),
    Restated("rsqrt", lambda x: 1 / mpmath.sqrt(x), low=0.0),
    Restated("reciprocal", lambda x: 1 / x, low=0.0),
    Restated("pow", lambda x: x ** number(2.5), {"exponent": 2.5}, low=0.0),
    Restated("pow", lambda x: x**-3, {"exponent": -3}, low=0.0),
]
#: Over an interval in which neither the function nor its slopes are large.
WITHIN: list[Restated] = [
    Restated("sigmoid", lambda x: 1 / (1 + mpmath.exp(-x)), low=-5, high=5),
    Restated("tanh", mpmath.tanh, low=-5, high=5),
    Restated("relu", lambda x: max(x, number(0)), low=-5, high=5),
    Restated("relu6", lambda x: clip(x, 0, 6), low=-4, high=9),
    Restated("hardshrink", lambda x: x if abs(x) > 0.5 else number(0), low=-2, high=2),
    Restated("softshrink", lambda x: x - clip(x, -0.5, 0.5), low=-2, high=2),
    Restated("threshold", lambda x: x if x > 0.2 else number(7), {"threshold": 0.2, "value": 7.0}, -2, 2),
    Restated("logit", lambda x: mpmath.log(x / (1 - x)), low=0.05, high=0.95),
    Restated("acos", mpmath.acos, low=-0.95, high=0.95),
    Restated("asin", mpmath.asin, low=-0.95, high=0.95),
    Restated("acosh", mpmath.acosh, low=1.05, high=9),
    Restated("atanh", mpmath.atanh, low=-0.95, high=0.95),
    Restated("cosh", mpmath.cosh, low=-3, high=3),
    Restated("sinh", mpmath.sinh, low=-3, high=3),
    Restated("sinc", mpmath.sincpi, low=-4, high=4),
    Restated("tan", mpmath.tan, low=-1.4, high=1.4),
    Restated("angle", mpmath.arg, low=-5, high=5),
    Restated("ceil", mpmath.ceil, low=-5, high=5),
    Restated("floor", mpmath.floor, low=-5, high=5),
    Restated("round", mpmath.nint, low=-5, high=5),
    Restated("frexp", lambda x: mpmath.frexp(x)[0], low=-5, high=5),
    Restated("trunc", truncated, low=-5, high=5),
    Restated("frac", lambda x: x - truncated(x), low=-5, high=5),
    Restated("floor_divide", lambda x: mpmath.floor(x / number(0.7)), {"other": 0.7}, -5, 5),
    Restated("div", lambda x: mpmath.floor(x / number(0.7)), {"other": 0.7, "rounding_mode": "floor"}, -5, 5),
    Restated("div", lambda x: truncated(x / number(0.7)), {"other": 0.7, "rounding_mode": "trunc"}, -5, 5),
    Restated("fmod", lambda x: x - number(0.7) * truncated(x / number(0.7)), {"other": 0.7}, -5, 5),
    Restated("remainder", lambda x: x - number(0.7) * mpmath.floor(x / number(0.7)), {"other": 0.7}, -5, 5),
    Restated("clamp", lambda x: clip(x, -1.1, 2.2), {"min": -1.1, "max": 2.2}, -5, 5),
    Restated("clamp", lambda x: max(x, number(0.4)), {"min": 0.4, "max": None}, -5, 5),
    Restated("clamp", lambda x: min(x, number(0.4)), {"min": None, "max": 0.4}, -5, 5),
    Restated("sign", mpmath.sign, low=-5, high=5),
    Restated("sgn", mpmath.sign, low=-5, high=5),
    Restated("nan_to_num", lambda x: x, low=-5, high=5),
    Restated("digamma", mpmath.digamma, low=0.5, high=9),
    Restated("polygamma", lambda x: mpmath.polygamma(2, x), {"n": 2}, low=1.5, high=9),
    Restated("lgamma", mpmath.loggamma, low=0.5, high=9),
    Restated("mvlgamma", multigamma, {"p": 3}, low=1.5, high=9),
    Restated("erfinv", mpmath.erfinv, low=-0.9, high=0.9),
    Restated("i0", lambda x: mpmath.besseli(0, x), low=-4, high=4),
    Restated("special.i0e", lambda x: mpmath.besseli(0, x) * mpmath.exp(-abs(x)), low=-4, high=4),
    Restated("special.i1", lambda x: mpmath.besseli(1, x), low=-4, high=4),
    Restated("special.i1e", lambda x: mpmath.besseli(1, x) * mpmath.exp(-abs(x)), low=-4, high=4),
    Restated("special.entr", lambda x: -x * mpmath.log(x), low=0.05, high=5),
    Restated("special.erfcx", lambda x: mpmath.exp(x * x) * mpmath.erfc(x), low=-1.5, high=5),
    Restated("special.log_ndtr", lambda x: mpmath.log(gaussian(x)), low=-5, high=5),
    Restated("special.ndtri", lambda x: mpmath.sqrt(2) * mpmath.erfinv(2 * x - 1), low=0.05, high=0.95),
]
FUNCTIONS: list[Restated] = [*EVERYWHERE, *POSITIVE, *WITHIN]
