"""What paths are measured on: 12 inputs, where brute force is the truth, and real and larger models."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from aeon.datasets import load_basic_motions, load_japanese_vowels
from problems.truth.tasks import BATCH, FEATURES, STEPS, fit, interactions, nonlinear, untrained
from torch import Generator, Tensor, nn

SAMPLE_SEED = 1000


class Size(NamedTuple):
    """How much is measured.

    Args:
        seeds: models of each kind.
        samples: explained of each model of 12 inputs.
        larger: explained of each larger one.
        references: of each model.
        updates: of the training on the task of 12 inputs, and on the real data.

    """

    seeds: int
    samples: int
    larger: int
    references: int
    updates: tuple[int, int]


class Problem(NamedTuple):
    """A model and what is explained of it.

    Args:
        net: takes (B, T, features), returns (B, 1), in float64.
        x: samples.
        references: for all of them.
        groups: the player of each element, (T, features).
        fit: share of the variance explained, or accuracy on test data; nan if it is not trained.

    """

    net: nn.Module
    x: Tensor
    references: Tensor
    groups: Tensor
    fit: float

    @property
    def players(self) -> int:
        """The number of players."""
        return int(self.groups.max()) + 1

    def by_group(self, values: Tensor) -> Tensor:
        """Sum the values of elements (M, T, features) over each group."""
        found = values.new_zeros(len(values), self.players)
        return found.index_add_(1, self.groups.flatten(), values.flatten(1))


class Attention(nn.Module):
    """A recurrent layer whose steps are weighed by attention.

    Args:
        scale: of the initial weights of the layer, and of the scores.

    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.rnn, self.scale = nn.LSTM(FEATURES, 16, batch_first=True), scale
        self.query, self.head = nn.Linear(16, 1), nn.Linear(16, 1)
        for weight in self.rnn.parameters():
            weight.data *= scale

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each row."""
        y = self.rnn(x)[0]
        return self.head((torch.softmax(self.scale * self.query(y), 1) * y).sum(1))


class Transformer(nn.Module):
    """A layer of a transformer.

    Args:
        scale: of what it gets.

    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.into, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, 1)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.places = nn.Parameter(torch.randn(STEPS, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each row."""
        return self.head(self.layer(self.scale * self.into(x) + self.places).mean(1))


class Classifier(nn.Module):
    """A recurrent layer and a linear head on its last output."""

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(features, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs)."""
        return self.head(self.rnn(x)[0][:, -1])


class Output(nn.Module):
    """One output of a model."""

    def __init__(self, net: nn.Module, output: int) -> None:
        super().__init__()
        self.net, self.output = net, output

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1)."""
        return self.net(x)[:, self.output : self.output + 1]


def _of_twelve(net: nn.Module, seed: int, size: Size, explains: float = float("nan")) -> Problem:
    generator = Generator().manual_seed(SAMPLE_SEED + seed)
    x, references = (interactions(n, generator)[0].double() for n in (size.samples, size.references))
    groups = torch.arange(STEPS * FEATURES).view(STEPS, FEATURES)
    return Problem(net.double().eval(), x, references, groups, explains)


def _trained(net: nn.Module, seed: int, size: Size) -> Problem:
    generator = Generator().manual_seed(seed)
    fit(net, lambda: interactions(BATCH, generator), size.updates[0], 0.01)
    x, y = interactions(2000, generator)
    with torch.no_grad():
        rest = ((net(x) - y) ** 2).mean() / y.var()
    return _of_twelve(net, seed, size, 1 - float(rest))


def _seeded(make: Callable[[float], nn.Module], seed: int, scale: float) -> nn.Module:
    torch.manual_seed(seed)
    return make(scale)


def large(seed: int, size: Size) -> Problem:
    """12 steps of 5 numbers, 32 hidden units, at three times torch's initial weights."""
    torch.manual_seed(seed)
    net = Classifier(5, 32, 1)
    for weight in net.rnn.parameters():
        weight.data *= 3
    generator = Generator().manual_seed(SAMPLE_SEED + seed)
    x, references = (
        torch.randn(n, 12, 5, generator=generator).double() for n in (size.larger, size.references)
    )
    return Problem(net.double().eval(), x, references, torch.arange(60).view(12, 5), float("nan"))


def _vowels(split: str) -> tuple[Tensor, list[str]]:
    """Return recordings (N, 15, 12), which are 7 to 29 steps long, at 15 points."""
    series, speakers = load_japanese_vowels(split=split)
    at = [
        nn.functional.interpolate(torch.tensor(np.array(each))[None].float(), 15, mode="linear")
        for each in series
    ]
    return torch.cat(at).mT, list(speakers)


def _motions(split: str) -> tuple[Tensor, list[str]]:
    """Return recordings (N, 50, 6), means of two steps."""
    series, activities = load_basic_motions(split=split)
    return torch.tensor(series).float().unflatten(2, (-1, 2)).mean(3).mT, list(activities)


def _real(load: Callable[[str], tuple[Tensor, list[str]]], parts: int, seed: int, size: Size) -> Problem:
    """Train a classifier; explained is its output for one of the classes, another for each seed."""
    (x, names), (x_test, names_test) = load("train"), load("test")
    classes = sorted(set(names))
    labels, wanted = (torch.tensor([classes.index(name) for name in each]) for each in (names, names_test))
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    torch.manual_seed(seed)
    net = Classifier(x.shape[2], 32, len(classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(size.updates[1]):
        loss = nn.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        accuracy = float((net(x_test).argmax(1) == wanted).double().mean())
    generator = Generator().manual_seed(SAMPLE_SEED + seed)
    chosen = torch.randperm(len(x_test), generator=generator)[: size.larger]
    references = torch.randperm(len(x), generator=generator)[: size.references]
    # Players are a channel's numbers in one part of the time.
    steps, channels = x.shape[1:]
    groups = torch.arange(steps)[:, None] // (steps // parts) * channels + torch.arange(channels)
    explained = Output(net, seed % len(classes)).double().eval()
    return Problem(explained, x_test[chosen].double(), x[references].double(), groups, accuracy)


TWELVE: dict[str, Callable[[int, Size], Problem]] = {
    "LSTM, trained": lambda seed, size: _kind("LSTM", seed, size),
    "GRU, trained": lambda seed, size: _kind("GRU", seed, size),
    "LSTM, 5 x random": lambda seed, size: _of_twelve(untrained("LSTM", seed, 5), seed, size),
    "GRU, 5 x random": lambda seed, size: _of_twelve(untrained("GRU", seed, 5), seed, size),
    "attention, trained": lambda seed, size: _trained(_seeded(Attention, seed, 1), seed, size),
    "attention, random": lambda seed, size: _of_twelve(_seeded(Attention, seed, 3), seed, size),
    "transformer, trained": lambda seed, size: _trained(_seeded(Transformer, seed, 1), seed, size),
    "transformer, random": lambda seed, size: _of_twelve(_seeded(Transformer, seed, 3), seed, size),
}
LARGER: dict[str, Callable[[int, Size], Problem]] = {
    "large LSTM, 60": large,
    "JapaneseVowels, 36": lambda seed, size: _real(_vowels, 3, seed, size),
    "BasicMotions, 30": lambda seed, size: _real(_motions, 5, seed, size),
}


def _kind(kind: str, seed: int, size: Size) -> Problem:
    net, explains = nonlinear(kind, seed, size.updates[0])
    return _of_twelve(net, seed, size, explains)
