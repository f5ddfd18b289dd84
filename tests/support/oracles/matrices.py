"""Rules of functions of matrices of two rows, restated with the formulas of such matrices."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

Row = list[float]
Shares = list[Row]
Matrix = list[list[Fraction]]


def apart(row: Tensor) -> Tensor:
    """Return a row that begins with a matrix far from those that have no inverse."""
    return row.clamp(-2, 2) + torch.tensor([5.0, 0, 0, 5.0, 0, 0], dtype=row.dtype)[: len(row)]


def positive(row: Tensor) -> Tensor:
    """Return a symmetric matrix of positive eigenvalues."""
    a, b, c = row[0].abs() + 1, row[1], row[3].abs() + 1
    return torch.stack([a, b, b, c + b * b / a])


def diagonal(row: Tensor) -> Tensor:
    return row * torch.tensor([1.0, 0, 0, 1.0], dtype=row.dtype)


def _matrix(row: Row) -> Matrix:
    a, b, c, d = (Fraction(each) for each in row[:4])
    return [[a, b], [c, d]]


def _inverse(m: Matrix) -> Matrix:
    (a, b), (c, d) = m
    size = a * d - b * c
    return [[d / size, -b / size], [-c / size, a / size]]


def of_inverse(x: Row, x0: Row) -> Shares:
    """Each element's part of ``- (p D q + q D p) / 2``, D the difference, p and q the inverses."""
    p, q = _inverse(_matrix(x)), _inverse(_matrix(x0))
    places = [(k, m) for k in range(2) for m in range(2)]
    change = [Fraction(a) - Fraction(b) for a, b in zip(x, x0, strict=True)]
    return [
        [
            float(-(p[i][k] * q[m][j] + q[i][k] * p[m][j]) * delta / 2)
            for (k, m), delta in zip(places, change, strict=True)
        ]
        for i, j in places
    ]


def of_solution(x: Row, x0: Row) -> Shares:
    """What a game of two players gives the matrix and the right side, shared as both are linear in it."""
    p, q = _inverse(_matrix(x)), _inverse(_matrix(x0))
    r, r0 = ([Fraction(each) for each in side[4:]] for side in (x, x0))
    change = [Fraction(a) - Fraction(b) for a, b in zip(x, x0, strict=True)]
    mean = [(a + b) / 2 for a, b in zip(r, r0, strict=True)]
    found = []
    for i in range(2):
        # With either right side the inverse changes by -p D q = -q D p.
        of_matrix = [
            -(
                p[i][k] * sum(q[m][j] * r0[j] for j in range(2))
                + q[i][k] * sum(p[m][j] * r[j] for j in range(2))
            )
            / 2
            * change[2 * k + m]
            for k in range(2)
            for m in range(2)
        ]
        of_right = [(p[i][j] + q[i][j]) / 2 * change[4 + j] for j in range(2)]
        total = sum(p[i][j] * r[j] - q[i][j] * r0[j] for j in range(2))
        assert sum(of_matrix) + sum(of_right) == total
        assert sum(of_matrix) == sum((p[i][j] - q[i][j]) * mean[j] for j in range(2))
        found.append([float(each) for each in (*of_matrix, *of_right)])
    return found


def of_factor(x: Row, x0: Row) -> Shares:
    """Element by element: ``a = l l``, ``b = l m``, ``c = m m + n n``, each difference by means."""

    def factor(row: Row) -> tuple[float, float, float]:
        first = math.sqrt(row[0])
        below = row[2] / first
        return first, below, math.sqrt(row[3] - below * below)

    (k, m, n), (k0, m0, n0) = factor(x), factor(x0)
    of_first = [(x[0] - x0[0]) / (k + k0), 0.0, 0.0, 0.0]
    of_below = [-(m + m0) / (k + k0) * each for each in of_first]
    of_below[2] += 2 * (x[2] - x0[2]) / (k + k0)
    of_last = [-(m + m0) / (n + n0) * each for each in of_below]
    of_last[3] += (x[3] - x0[3]) / (n + n0)
    return [of_first, [0.0] * 4, of_below, of_last]


def of_determinant(x: Row, x0: Row) -> Shares:
    """The integral of the gradient on the line: each factor's change times the mean of the other."""
    (a, b), (c, d) = _matrix(x)
    (a0, b0), (c0, d0) = _matrix(x0)
    shares = [(a - a0) * (d + d0), -(b - b0) * (c + c0), -(c - c0) * (b + b0), (d - d0) * (a + a0)]
    return [[float(each / 2) for each in shares]]


def of_exponential(x: Row, x0: Row) -> Shares:
    """Of diagonal matrices each element is a function of one number."""
    first, last = (math.exp(x[k]) - math.exp(x0[k]) for k in (0, 3))
    return [[first, 0, 0, 0], [0.0] * 4, [0.0] * 4, [0, 0, 0, last]]
