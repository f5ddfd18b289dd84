"""Functions of two numbers, as Python's mathematics has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath


@dataclass(frozen=True)
class RestatedPair:
    """A function of two numbers.

    Args:
        function: of two numbers of Python's.
        low: the smallest absolute value of each operand.
        high: the largest.
        signed: whether each operand may be negative.
        of_second: whether the first operand has to be the same.
        options: what the atom is made with.

    """

    function: Callable[[float, float], Any]
    low: tuple[float, float] = (0.1, 0.1)
    high: tuple[float, float] = (3.1, 3.1)
    signed: tuple[bool, bool] = (True, True)
    of_second: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_POSITIVE = (False, False)
FIRST_SIGNED, SECOND_SIGNED = (True, False), (False, True)

#: By the name of the function, with the mode that an option names.
RESTATED: dict[str, RestatedPair] = {
    "atan2": RestatedPair(math.atan2),
    "clamp_max": RestatedPair(min),
    "clamp_min": RestatedPair(max),
    "copysign": RestatedPair(math.copysign),
    "div": RestatedPair(lambda a, b: a / b),
    "div floor": RestatedPair(lambda a, b: math.floor(a / b), options={"rounding_mode": "floor"}),
    "div trunc": RestatedPair(lambda a, b: math.trunc(a / b), options={"rounding_mode": "trunc"}),
    "fmax": RestatedPair(max),
    "fmin": RestatedPair(min),
    "fmod": RestatedPair(math.fmod),
    "hypot": RestatedPair(math.hypot),
    "igamma": RestatedPair(
        lambda a, b: mpmath.gammainc(a, 0, b, regularized=True), signed=_POSITIVE, of_second=True
    ),
    "igammac": RestatedPair(
        lambda a, b: mpmath.gammainc(a, b, mpmath.inf, regularized=True), signed=_POSITIVE, of_second=True
    ),
    "logaddexp": RestatedPair(lambda a, b: max(a, b) + math.log1p(math.exp(-abs(a - b)))),
    "logaddexp2": RestatedPair(lambda a, b: max(a, b) + math.log2(1 + 2 ** -abs(a - b))),
    "maximum": RestatedPair(max),
    "minimum": RestatedPair(min),
    "pow": RestatedPair(lambda a, b: a**b, signed=SECOND_SIGNED),
    "remainder": RestatedPair(lambda a, b: math.fmod(a, b) + (b if math.fmod(a, b) * b < 0 else 0)),
    "special.xlog1py": RestatedPair(lambda a, b: a * math.log1p(b), high=(3.1, 0.9)),
    "special.zeta": RestatedPair(mpmath.zeta, low=(1.3, 0.5), signed=_POSITIVE, of_second=True),
    "xlogy": RestatedPair(lambda a, b: a * math.log(b), signed=FIRST_SIGNED),
}
