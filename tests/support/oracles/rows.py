"""Rules of softmax, norms and variances, restated for one row: d output / d input, in many digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

from passes.leaves import Atom
from passes.operations.softmax.atoms import LogSumExp, SoftmaxAtom


def restated_softmax(kind: type[Atom], x: list[float], x0: list[float]) -> list[list[float]]:
    """Return d output / d input as the docstring has it, in numbers of 60 digits."""
    with localcontext() as context:
        context.prec = 60
        rows = [[Decimal(v) for v in row] for row in (x, x0)]
        sums = [sum(v.exp() for v in row) for row in rows]
        p, p0 = ([v.exp() / s for v in row] for row, s in zip(rows, sums, strict=True))
        # Closer to each other than half of the digits their mean is either.
        near = Decimal("1e-30")
        mean = [
            a if abs(a - b) <= near * a else (a - b) / (a.ln() - b.ln()) for a, b in zip(p, p0, strict=True)
        ]
        share = [m / sum(mean) for m in mean]
        if kind is LogSumExp:
            return [[float(s) for s in share]]
        slopes = mean if kind is SoftmaxAtom else [Decimal(1)] * len(mean)
        return [[float(m * ((i == j) - s)) for i, s in enumerate(share)] for j, m in enumerate(slopes)]


def restated_standardize(x: list[float], x0: list[float], eps: float, centred: bool) -> list[list[float]]:
    """Return d output / d input: the product y s = c split by the means of its factors, in fractions."""
    n = len(x)
    rows = [[Fraction(v) for v in row] for row in (x, x0)]
    means = [sum(row) / n if centred else Fraction(0) for row in rows]
    c, c0 = ([v - m for v in row] for row, m in zip(rows, means, strict=True))
    s, s0 = (Fraction(math.sqrt(float(sum(v * v for v in row) / n) + eps)) for row in (c, c0))
    jacobian = []
    for j in range(n):
        mean_y = (c[j] / s + c0[j] / s0) / 2
        # Of c_i, by s² = mean of c² + eps.
        row = [((i == j) - mean_y * (c[i] + c0[i]) / n / (s + s0)) * 2 / (s + s0) for i in range(n)]
        jacobian.append([float(v - (sum(row) / n if centred else 0)) for v in row])
    return jacobian


def root(value: Fraction) -> Fraction:
    """Square root to about 40 digits."""
    scale = 10**80
    return Fraction(math.isqrt(int(value * scale)), 10**40)


def length(order: int, row: list[Fraction]) -> Fraction:
    return sum(map(abs, row), Fraction(0)) if order == 1 else root(sum((v * v for v in row), Fraction(0)))


def restated_norm(order: int, x: list[Fraction], x0: list[Fraction]) -> list[Fraction]:
    """Of a norm: each square's chord over the sum of both roots, each absolute value's own chord."""
    both = length(2, x) + length(2, x0)
    if order == 2:
        return [(a + b) / both if both else Fraction(0) for a, b in zip(x, x0, strict=True)]
    return [
        (abs(a) - abs(b)) / (a - b) if a != b else Fraction((a > 0) - (a < 0))
        for a, b in zip(x, x0, strict=True)
    ]


def restated_variance(
    x: list[Fraction], x0: list[Fraction], correction: int, take_root: bool
) -> tuple[list[float], Fraction]:
    """Of the sum of squares each square's own chord; of its root that over the sum of both, returned too."""
    count = len(x) - correction
    c, c0 = ([v - sum(row, Fraction(0)) / len(row) for v in row] for row in (x, x0))
    v, v0 = (sum((each * each for each in row), Fraction(0)) / count for row in (c, c0))
    below = root(v) + root(v0) if take_root else Fraction(1)
    if not below:
        return [0.0] * len(x), below
    return [float((p + q) / count / below) for p, q in zip(c, c0, strict=True)], below


def restated_normalize(order: int, x: list[Fraction], x0: list[Fraction], eps: float) -> list[list[float]]:
    """Split x = y s by the means of its factors, s the norm, at least eps."""
    s, s0 = (length(order, row) for row in (x, x0))
    t, t0 = (max(each, Fraction(eps)) for each in (s, s0))
    follows = (t - t0) / (s - s0) if s != s0 else Fraction(s >= Fraction(eps))
    y = [(a / t + b / t0) / 2 for a, b in zip(x, x0, strict=True)]
    m = restated_norm(order, x, x0)
    return [
        [float(2 * ((i == j) - y[j] * follows * m[i]) / (t + t0)) for i in range(len(x))]
        for j in range(len(x))
    ]
