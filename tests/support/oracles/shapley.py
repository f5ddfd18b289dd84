"""Shapley values by their definition (Shapley 1953)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Fraction)


def shapley_of_orders(
    game: Callable[[list[Number]], Number], x: list[Number], x0: list[Number]
) -> list[Number]:
    """Average what each player changes over all orders in which players go from reference to sample."""
    total = [0 * each for each in x]
    for order in itertools.permutations(range(len(x))):
        now = list(x0)
        for player in order:
            before = game(now)
            now[player] = x[player]
            total[player] += game(now) - before
    return [each / math.factorial(len(x)) for each in total]


def shapley_of_subsets(function: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> Tensor:
    """Exact Shapley values of few numbers, from the values of all subsets."""
    n = len(x)
    subsets = list(itertools.product((False, True), repeat=n))
    values = {s: function(torch.where(torch.tensor(s), x, x0)) for s in subsets}
    phi = torch.zeros(n, dtype=x.dtype)
    for i, s in itertools.product(range(n), subsets):
        if not s[i]:
            size = sum(s)
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            phi[i] += weight * (values[(*s[:i], True, *s[i + 1 :])] - values[s])
    return phi
