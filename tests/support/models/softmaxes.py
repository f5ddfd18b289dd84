"""Calls of softmax and its kin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class AdditiveAttention(nn.Module):
    """An LSTM whose states are weighed by softmax over time."""

    def __init__(self, softmax: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.key = nn.Linear(6, 4)
        self.score = nn.Linear(4, 1)
        self.softmax = softmax
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        weights = self.softmax(5 * self.score(torch.tanh(self.key(states))))
        return self.head((weights * states).sum(1)).log_softmax(-1)


class InCode(AdditiveAttention):
    """Cannot be followed by torch.fx; its modules become atoms where they are."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] < 0 or float(x.detach().sum()) > 1e9:
            return x
        states, _ = self.rnn(x)
        weights: Tensor = self.softmax(self.score(self.key(states)))
        return self.head((weights * x.shape[1]).sum(1).expand(-1, 6))
