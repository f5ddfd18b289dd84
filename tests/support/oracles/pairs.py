"""Functions of two numbers, as Python's mathematics has them."""

from __future__ import annotations

import math
from collections.abc import Callable

#: By the name of the record.
RESTATED: dict[str, Callable[[float, float], float]] = {
    "atan2": math.atan2,
    "clamp_max": min,
    "clamp_min": max,
    "copysign": math.copysign,
    "div": lambda a, b: a / b,
    "fmax": max,
    "fmin": min,
    "fmod": math.fmod,
    "hypot": math.hypot,
    "logaddexp": lambda a, b: max(a, b) + math.log1p(math.exp(-abs(a - b))),
    "logaddexp2": lambda a, b: max(a, b) + math.log2(1 + 2 ** -abs(a - b)),
    "maximum": max,
    "minimum": min,
    "pow": lambda a, b: a**b,
    "remainder": lambda a, b: a - b * math.floor(a / b),
    "special.xlog1py": lambda a, b: a * math.log1p(b),
    "xlogy": lambda a, b: a * math.log(b),
}
