"""Loops of users' own beside the built-in layer of the same size: time, and what of it is the cell's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from problems.explain_problem import Net, Size
from torch import Tensor, nn

from rewriter import DeepExplainer

State = tuple[Tensor, ...]


class Loop(nn.Module):
    """A loop over a cell, which shares the head of the built-in layer.

    Args:
        size: of the problem.
        head: the head.

    """

    def __init__(self, size: Size, head: nn.Module) -> None:
        super().__init__()
        self.size, self.head = size, head
        self.x, self.h = nn.Linear(size.I, 4 * size.H), nn.Linear(size.H, 4 * size.H)
        self.peepholes = nn.Parameter(torch.randn(3, size.H) / 8)
        self.norm = nn.LayerNorm(size.H)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """Take one step of an LSTM."""
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K)."""
        h = c = torch.zeros(x.shape[0], self.size.H)
        for t in range(self.size.T):
            h, c = self.step(x[:, t], h, c)
        return self.head(h)


class Cells(Loop):
    """The cell is torch's."""

    def __init__(self, size: Size, head: nn.Module) -> None:
        super().__init__(size, head)
        self.cell = nn.LSTMCell(size.I, size.H)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """Take one step of an LSTM."""
        new: State = self.cell(x, (h, c))
        return new


class Peephole(Loop):
    """The gates see the cell state."""

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """Take one step."""
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        of_i, of_f, of_o = self.peepholes
        new = torch.sigmoid(f + of_f * c) * c + torch.sigmoid(i + of_i * c) * torch.tanh(g)
        return torch.sigmoid(o + of_o * new) * torch.tanh(new), new


class LayerNorm(Loop):
    """The cell state is normalised."""

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """Take one step."""
        h, c = super().step(x, h, c)
        return h, self.norm(c)


class LayerNormLSTM(Loop):
    """Both parts of the gates are normalised as wholes, and the cell state."""

    def __init__(self, size: Size, head: nn.Module) -> None:
        super().__init__(size, head)
        self.of_x, self.of_h = nn.LayerNorm(4 * size.H), nn.LayerNorm(4 * size.H)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> State:
        """Take one step."""
        i, f, g, o = (self.of_x(self.x(x)) + self.of_h(self.h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm(c)), c


#: By what they are called in the table.
LOOPS: Mapping[str, Callable[[Size, nn.Module], Loop]] = {
    "nn.LSTMCell": Cells,
    "Linears": Loop,
    "peephole": Peephole,
    "normed state": LayerNorm,
    "layer-norm LSTM": LayerNormLSTM,
}


def contestants(size: Size) -> dict[str, Callable[[], Any]]:
    """Return what explains the built-in layer, and what explains each loop."""
    torch.manual_seed(0)
    net = Net("LSTM", size, 1).eval()
    x, background = torch.randn(size.M, size.T, size.I), torch.randn(size.N, size.T, size.I)
    models = {"nn.LSTM": net, **{name: build(size, net.head).eval() for name, build in LOOPS.items()}}
    explainers = {name: DeepExplainer(model, background, progress=False) for name, model in models.items()}

    def run(explainer: DeepExplainer) -> Callable[[], Any]:
        return lambda: explainer.shap_values(x, check_additivity=False)

    return {name: run(each) for name, each in explainers.items()}
