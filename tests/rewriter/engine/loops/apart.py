"""Loops of users' own whose steps take what was made for each of them, and loops that go by sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.rewriter.engine.loops.models import HIDDEN, INPUTS, STEPS, Loop, State


class TwoSequences(Loop):
    """Parts of two sequences."""

    def forward(self, x: Tensor) -> Tensor:
        (h, _), other = self.start(x), torch.tanh(x)
        for t in range(STEPS):
            h = torch.tanh(self.z(x[:, t]) + self.c(other[:, t]) + self.hz(h))
        return self.head(h)


class OneStepAgain(Loop):
    """Each step takes the same part."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for _ in range(STEPS):
            h = torch.tanh(self.z(x[:, 2]) + self.hz(h))
        return self.head(h)


class AnyOrder(Loop):
    """Parts that are not equally far apart."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t in (0, 1, 4, 2, 5, 3):
            h = torch.tanh(self.z(x[:, t]) + self.hz(h))
        return self.head(h)


class OfWhatIsMade(Loop):
    """A Linear of what another one makes of the sequence."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        return torch.tanh(self.hr(torch.relu(self.z(x))) + self.hz(h)), c + h


class OverTheEnd(Loop):
    """Parts that begin at one end and go on at the other."""

    def __init__(self, place: Callable[[int], int]) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t in range(STEPS):
            h = torch.tanh(self.z(x[:, self.place(t)]) + self.hz(h))
        return self.head(h)


class Reading(Loop):
    """Each step takes what varies, and is the same for all."""

    def forward(self, x: Tensor) -> Tensor:
        whole, state = torch.tanh(self.z(x.sum(1))), self.start(x)
        for t in range(STEPS):
            h, c = self.step(x[:, t], *state)
            state = h * whole, c
        return self.head(state[0])


class Function(Loop):
    """Runs a function of itself."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.pre, self.drop = nn.Linear(INPUTS, INPUTS), nn.Dropout(0.1)
        self.gru, self.gru2 = nn.GRUCell(INPUTS, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)
        self.optional = Optional()
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, x))


class Optional(nn.Module):
    """A cell that begins by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = torch.zeros(x.shape[0], HIDDEN, dtype=x.dtype)
        return torch.tanh(self.x(x) + self.h(h))


def over(parts: Callable[[Any, Tensor], Any]) -> Callable[[], nn.Module]:
    """A loop over parts."""

    def run(self: Any, x: Tensor) -> Tensor:
        (h, _) = self.start(x)
        for each in parts(self, x):
            h = torch.tanh(self.z(each) + self.hz(h))
        return h

    return lambda: Function(run)


def stepping(step: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A loop of a step of its own."""

    def run(self: Any, x: Tensor) -> Tensor:
        (h, _) = self.start(x)
        for t in range(STEPS):
            h = step(self, x[:, t], h)
        return h

    return lambda: Function(run)


def by_condition(self: Any, x: Tensor) -> Tensor:
    t, (h, _) = 0, self.start(x)
    while t < x.shape[1]:
        h, t = torch.tanh(self.z(x[:, t]) + self.hz(h)), t + 1
    return h


def made_before(self: Any, x: Tensor) -> Tensor:
    parts, (h, _) = self.z(x), self.start(x)
    for t in range(STEPS):
        h = torch.tanh(parts[:, t] + self.hz(h))
    return h


def as_it_is(self: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], INPUTS, dtype=x.dtype)
    for t in range(STEPS):
        h = torch.tanh(x[:, t] + self.pre(h))
    return torch.cat([h, h[:, :1]], 1)


def one_number_for_all(self: Any, x: Tensor) -> Tensor:
    (h, _) = self.start(x)
    for t in range(STEPS):
        h = torch.tanh(x[:, t, :1] + self.hz(h))
    return h


def starting_itself(self: Any, x: Tensor) -> Tensor:
    h: Any = None
    for t in range(STEPS):
        h = self.optional(x[:, t], h)
    return h


def stacked(self: Any, x: Tensor) -> Tensor:
    states = list(self.start(x))
    for t in range(STEPS):
        below = x[:, t]
        for k, cell in enumerate((self.gru, self.gru2)):
            below = states[k] = cell(below, states[k])
    return below


def written(self: Any, x: Tensor) -> Tensor:
    (h, _), out = self.start(x), x.new_zeros(x.shape[0], x.size(1), HIDDEN)
    for t in range(x.size(1)):
        h = self.gru(x[:, t], h)
        out[:, t] = h
    return out.mean(1)


def with_functions(self: Any, x: Tensor) -> Tensor:
    (h, _) = self.start(x)
    for t in range(STEPS):
        part = nn.functional.linear(x[:, t], self.z.weight, self.z.bias)
        h = torch.tanh(part + h @ self.hz.weight.T + self.hz.bias)
    return h


def twice(self: Any, x: Tensor) -> Tensor:
    (h, _) = self.start(x)
    for t in range(STEPS):
        for _ in range(2):
            h = torch.tanh(self.z(x[:, t]) + self.hz(h))
    return h


APART: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "two sequences": (TwoSequences, 1),
    "one part": (OneStepAgain, 1),
    "any order": (AnyOrder, 1),
    "a Linear of a Linear": (OfWhatIsMade, 1),
    "from the last part on": (lambda: OverTheEnd(lambda t: t - 1), 1),
    "from the first part back": (lambda: OverTheEnd(lambda t: -t), 1),
    "reading": (Reading, 1),
    "for each in unbind": (over(lambda _, x: x.unbind(1)), 1),
    "for each in a tensor": (over(lambda _, x: x.transpose(0, 1)), 1),
    "split": (over(lambda _, x: [each.squeeze(1) for each in x.split(1, 1)]), 1),
    "select": (over(lambda _, x: [x.select(1, t) for t in range(STEPS)]), 1),
    "narrow": (over(lambda _, x: [x[:, t : t + 1].squeeze(1) for t in range(STEPS)]), 1),
    "preprocessed": (over(lambda self, x: [torch.relu(self.pre(x[:, t])) for t in range(STEPS)]), 1),
    "shape": (over(lambda _, x: (x[:, t] for t in range(x.shape[1]))), 1),
    "size": (over(lambda _, x: (x[:, t] for t in reversed(range(x.size(1))))), 1),
    "len": (over(lambda _, x: (x[:, t] for t in range(len(x.unbind(1))))), 1),
    "while": (lambda: Function(by_condition), 1),
    "in place": (stepping(lambda self, x, h: self.z(x).add_(self.hz(h)).tanh_()), 1),
    "a mask of what is new": (stepping(lambda self, x, h: torch.tanh(self.z(x) + self.hz(h)) * self.mask), 1),
    "dropout": (stepping(lambda self, x, h: torch.tanh(self.z(x) + self.hz(self.drop(h)))), 1),
    "gates made before": (lambda: Function(made_before), 1),
    "the part as it is": (lambda: Function(as_it_is), 1),
    "a cell that begins by itself": (lambda: Function(starting_itself), 1),
    "a stack of cells": (lambda: Function(stacked), 2),
    "written to a tensor": (lambda: Function(written), 1),
    "functions with parameters": (lambda: Function(with_functions), 1),
    "two uses a step": (lambda: Function(twice), 1),
    "one number for all": (lambda: Function(one_number_for_all), 1),
}
