"""Products of two operands that vary."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

N = 3


Function = Callable[[Any, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """A function of two inputs, with constants of several shapes at hand."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))
        self.form = nn.Parameter(torch.randn(2, 4, 5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.cube = nn.Parameter(torch.randn(2 * N, 4, 5, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(self, a, b)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def shapley(game: Callable[[bool, bool], Tensor]) -> list[Tensor]:
    """The two players' values by their definition: the mean over both orders of what each adds."""
    values = [torch.zeros(()), torch.zeros(())]
    for order in itertools.permutations((0, 1)):
        present = [False, False]
        for player in order:
            before = game(*present)
            present[player] = True
            values[player] = values[player] + (game(*present) - before) / 2
    return values
