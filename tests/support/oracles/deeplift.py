"""DeepLIFT for one pair, number by number: the rescale rule and the product rule (Shrikumar et al. 2017).

An array at the sample and at the reference, which remembers what it was made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Pair:
    """A vector at the sample and at the reference.

    Args:
        x: at the sample.
        x0: at the reference.
        made_of: each vector that it was made of, with what takes multipliers back to it.

    """

    def __init__(self, x: Array, x0: Array, *made_of: tuple[Pair, Callable[[Array], Array]]) -> None:
        self.x, self.x0, self.made_of = x, x0, made_of

    def __add__(self, other: Pair | float) -> Pair:
        if not isinstance(other, Pair):
            return Pair(self.x + other, self.x0 + other, (self, lambda m: m))
        return Pair(self.x + other.x, self.x0 + other.x0, (self, lambda m: m), (other, lambda m: m))

    def __rsub__(self, other: float) -> Pair:
        return Pair(other - self.x, other - self.x0, (self, lambda m: -m))

    def __mul__(self, other: Pair | float) -> Pair:
        if not isinstance(other, Pair):
            return Pair(self.x * other, self.x0 * other, (self, lambda m: m * other))
        a, b = (self.x + self.x0) / 2, (other.x + other.x0) / 2
        return Pair(self.x * other.x, self.x0 * other.x0, (self, lambda m: m * b), (other, lambda m: m * a))

    def of(self, function: Callable[[Array], Array]) -> Pair:
        """Apply a function of each number; one that is equal at both ends gets nothing."""
        y, y0 = function(self.x), function(self.x0)
        delta = self.x - self.x0
        slope = np.divide(y - y0, delta, out=np.zeros_like(delta), where=delta != 0)
        return Pair(y, y0, (self, lambda m: m * slope))

    def through(self, weight: Array, bias: Array) -> Pair:
        """Apply a Linear."""
        return Pair(weight @ self.x + bias, weight @ self.x0 + bias, (self, lambda m: weight.T @ m))

    def chunk(self, count: int) -> list[Pair]:
        """Cut in equal parts."""
        size = len(self.x) // count

        def part(k: int) -> Pair:
            own = slice(k * size, (k + 1) * size)

            def back(m: Array) -> Array:
                wide = np.zeros_like(self.x)
                wide[own] = m
                return wide

            return Pair(self.x[own], self.x0[own], (self, back))

        return [part(k) for k in range(count)]


def contributions(result: Pair, output: int, inputs: list[Pair]) -> list[Array]:
    """Return what each number of the inputs gives to one number of the result."""
    order: list[Pair] = []

    def visit(pair: Pair) -> None:
        if any(pair is each for each in order):
            return
        for each, _ in pair.made_of:
            visit(each)
        order.append(pair)

    visit(result)
    found: dict[int, Any] = {id(each): np.zeros_like(each.x) for each in order}
    found[id(result)] = np.eye(len(result.x))[output]
    for pair in reversed(order):
        for each, back in pair.made_of:
            found[id(each)] = found[id(each)] + back(found[id(pair)])
    return [found.get(id(each), np.zeros_like(each.x)) * (each.x - each.x0) for each in inputs]
