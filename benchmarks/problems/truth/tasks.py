"""The models whose attributions are judged, and the tasks they are trained on, all seeded.

Arithmetic, after Arras, Osman, Müller and Samek 2019, "Evaluating Recurrent Neural Network Explanations"
(arXiv:1904.11829): a sequence of two-dimensional vectors, 4 to 10 long, holds numbers n_a and n_b at random
positions a < b; an LSTM is to return n_a + n_b or n_a - n_b after the last. ``"sparse"``: each number has a
dimension of its own, the rest is zero. ``"marked"``: the first dimension is filled with random numbers and
the second marks the two that count, as in the adding problem of Hochreiter and Schmidhuber 1997, "Long
Short-Term Memory", experiment 4. Layout, sizes and training are choices of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

LENGTHS = range(4, 11)
BATCH = 128
# Of the task for which exact Shapley values are the truth: 12 cells of time and feature.
STEPS, FEATURES = 4, 3


class Net(nn.Module):
    """A recurrent layer and a linear head on its last output.

    Args:
        kind: ``"LSTM"`` or ``"GRU"``.
        features: of the input.
        hidden: size of the layer.
        bias: whether layer and head have biases.

    """

    def __init__(self, kind: str, features: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(features, hidden, batch_first=True, bias=bias)
        self.head = nn.Linear(hidden, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1) for (B, T, features)."""
        return self.head(self.rnn(x)[0][:, -1])


class Task(NamedTuple):
    """An arithmetic task.

    Args:
        layout: ``"sparse"`` or ``"marked"``.
        sign: of n_b: 1 to add, -1 to subtract.

    """

    layout: str
    sign: int


class Sums(NamedTuple):
    """Samples of an arithmetic task.

    Args:
        x: sequences (B, T, 2).
        y: targets (B, 1).
        positions: of the two numbers (B, 2), in increasing order.
        parts: n_a and n_b with its sign (B, 2); they sum to the target.

    """

    x: Tensor
    y: Tensor
    positions: Tensor
    parts: Tensor


def sums(task: Task, count: int, steps: int, generator: Generator) -> Sums:
    """Draw samples; numbers are uniform in [-1, 1]."""
    rows = torch.arange(count)
    positions = torch.rand(count, steps, generator=generator).argsort(1)[:, :2].sort(1).values
    a, b = positions.T
    numbers = torch.rand(count, 2, generator=generator) * 2 - 1
    x = torch.zeros(count, steps, 2)
    if task.layout == "sparse":
        x[rows, a, 0], x[rows, b, 1] = numbers.T
    else:
        x[..., 0] = torch.rand(count, steps, generator=generator) * 2 - 1
        x[rows, a, 0], x[rows, b, 0] = numbers.T
        x[rows, a, 1] = x[rows, b, 1] = 1
    parts = numbers * torch.tensor([1.0, task.sign])
    return Sums(x, parts.sum(1, keepdim=True), positions, parts)


def interactions(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw samples of a task with a product across time, a kink and a saturated part."""
    x = torch.randn(count, STEPS, FEATURES, generator=generator)
    y = x[:, 0, 0] * x[:, 3, 1] + x[:, 1, 2].abs() + torch.tanh(2 * x[:, 2, 0])
    return x, y[:, None]


def fit(net: nn.Module, draw: Callable[[], tuple[Tensor, Tensor]], updates: int, rate: float) -> None:
    """Train with Adam on the squared error of a fresh batch per update, the rate on one cycle."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates)
    for _ in range(updates):
        x, y = draw()
        loss = ((net(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def calculator(task: Task, seed: int, updates: int) -> tuple[Net, float]:
    """Return an LSTM trained on a task, and its squared error on samples of all lengths."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    # One unit without biases can do the sparse tasks; choosing among numbers takes more.
    sparse = task.layout == "sparse"
    net = Net("LSTM", 2, 1 if sparse else 8, bias=not sparse)
    if not sparse:
        with torch.no_grad():
            net.rnn.bias_ih_l0[8:16] = 2.0  # forget gates start open

    def draw() -> tuple[Tensor, Tensor]:
        steps = int(torch.randint(LENGTHS[0], LENGTHS[-1] + 1, (), generator=generator))
        return sums(task, BATCH, steps, generator)[:2]

    fit(net, draw, updates, 0.1 if sparse else 0.02)
    tests = [sums(task, 500, steps, generator) for steps in LENGTHS]
    with torch.no_grad():
        error = torch.cat([(net(each.x) - each.y) ** 2 for each in tests]).mean()
    return net.double().eval(), float(error)


def nonlinear(kind: str, seed: int, updates: int) -> tuple[Net, float]:
    """Return a model trained on :func:`interactions`, and the share of the variance it explains."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    net = Net(kind, FEATURES, 16)
    fit(net, lambda: interactions(BATCH, generator), updates, 0.02)
    x, y = interactions(2000, generator)
    with torch.no_grad():
        rest = ((net(x) - y) ** 2).mean() / y.var()
    return net.double().eval(), 1 - float(rest)


def untrained(kind: str, seed: int, scale: float) -> Net:
    """Return a model with torch's initial weights, those of the recurrent layer times ``scale``."""
    torch.manual_seed(seed)
    net = Net(kind, FEATURES, 16).double().eval()
    with torch.no_grad():
        for weight in net.rnn.parameters():
            weight *= scale
    return net
