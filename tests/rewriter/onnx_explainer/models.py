"""Models whose explanations are written, each with a background and what is written beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Case = tuple[nn.Module, list[Tensor], dict[str, Any]]


class Recurrent(nn.Module):
    """Layers of three kinds, stacked, one of them in both directions and projected."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, bidirectional=True, batch_first=True, proj_size=2)
        self.gru = nn.GRU(4, 3, batch_first=True)
        self.rnn = nn.RNN(3, 3, nonlinearity="relu")
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.gru(self.lstm(x)[0])
        z = self.rnn(y.transpose(0, 1), h)[0]
        return self.head(z[-1] + z.mean(0))


class Atoms(nn.Module):
    """Convolution, pool, norm, attention, maximum and functions of each element."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.max_pool1d(nn.functional.silu(self.convolution(x)), 2, 1)
        y = self.norm(nn.functional.avg_pool1d(y, 2, 1, count_include_pad=False).transpose(1, 2))
        y = y + (y @ y.transpose(1, 2)).softmax(-1) @ y
        return self.head(y.amax(1)).softmax(-1)


class OwnCell(nn.Module):
    """A loop over a cell with a peephole, and one over a cell with a norm, that has no sweep."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.hidden, self.peephole = (
            nn.Linear(3, 8),
            nn.Linear(4, 8),
            nn.Parameter(torch.randn(4)),
        )
        self.second, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(4):
            gate, new = (self.input(x[:, t]) + self.hidden(h)).chunk(2, 1)
            gate = torch.sigmoid(gate + self.peephole * h)
            h = (1 - gate) * h + gate * torch.tanh(new)
        for _ in range(2):
            h = torch.tanh(self.norm(self.second(h) + h))
        return h


class Lengths(nn.Module):
    """Sequences of different length, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, h = self.gru(packed)
        mean = pad_packed_sequence(y, batch_first=True)[0].sum(1) / lengths.unsqueeze(1)
        return self.head(torch.cat([mean, *h], 1)).squeeze(1)


class Tokens(nn.Module):
    """Tokens, one of them first, with positions; and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 4), nn.Embedding(7, 4)
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        given = torch.cat([torch.zeros_like(tokens[:, :1]), tokens.flip(1)], 1)
        found = torch.tanh(self.words(given) * self.places(torch.arange(given.shape[1])))
        return {"scores": self.head(torch.cat([found.sum(1), numbers], 1)).unsqueeze(-1), "found": found}


class Free(nn.Module):
    """Any number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y.mean(1)


def recurrent() -> Case:
    return Recurrent(), [torch.randn(5, 6, 3)], {}


def atoms() -> Case:
    return Atoms(), [torch.randn(4, 2, 9)], {"outputs": [2, 0]}


def own_cell() -> Case:
    return OwnCell(), [torch.randn(3, 4, 3)], {}


def lengths() -> Case:
    return Lengths(), [torch.randn(4, 6, 3), torch.tensor([6, 3, 5, 2])], {}


def tokens() -> Case:
    return Tokens(), [torch.randint(0, 11, (4, 6)), torch.randn(4, 2)], {"output": "scores"}


def free() -> Case:
    return Free(), [torch.randn(3, 5, 2)], {"references_as_input": True, "time_axis": 1}


CASES: list[Callable[[], Case]] = [recurrent, atoms, own_cell, lengths, tokens, free]
