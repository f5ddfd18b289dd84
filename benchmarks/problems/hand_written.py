"""Recurrent models as users write them, with a loop of their own over the steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS, HIDDEN, CLASSES = 8, 16, 2


class Loop(nn.Module):
    """An LSTM of two Linears; torch.fx can follow the loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.x, self.h = nn.Linear(INPUTS, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the mean of the hidden states."""
        h = c = torch.zeros(x.shape[0], HIDDEN)
        outputs = []
        for t in range(self.steps):
            i, f, g, o = torch.chunk(self.x(x[:, t]) + self.h(h), 4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return self.head(torch.stack(outputs, dim=1).mean(1))


class LoopOverShape(Loop):
    """The same over ``range(x.shape[1])``, which torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last hidden state."""
        h = c = torch.zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            i, f, g, o = torch.chunk(self.x(x[:, t]) + self.h(h), 4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class Cells(nn.Module):
    """``nn.LSTMCell`` in a loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell, self.head = nn.LSTMCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last hidden state."""
        h = c = torch.zeros(x.shape[0], HIDDEN)
        for t in range(self.steps):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class NormCell(nn.Module):
    """An LSTM cell with layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = (nn.Linear(size, 4 * HIDDEN, bias=False) for size in (INPUTS, HIDDEN))
        self.of_x, self.of_h, self.of_c = (nn.LayerNorm(size * HIDDEN) for size in (4, 4, 1))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take one step."""
        h, c = state
        i, f, g, o = (self.of_x(self.x(x)) + self.of_h(self.h(h))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.of_c(c)), c


class NormLoop(nn.Module):
    """A layer-norm LSTM."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell, self.head = NormCell(), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last hidden state."""
        h = c = torch.zeros(x.shape[0], HIDDEN)
        for t in range(self.steps):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class OptionalCell(nn.Module):
    """A cell that makes its first state, which torch.fx would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Take one step."""
        if h is None:
            h = x.new_zeros(x.shape[0], HIDDEN)
        return torch.tanh(self.x(x) + self.h(h))


class CellPerStep(nn.Module):
    """A cell of its own for each step, each of which stays the user's code."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(OptionalCell() for _ in range(steps))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last hidden state."""
        h = None
        for t, cell in enumerate(self.cells):
            h = cell(x[:, t], h)
        return self.head(h)


HAND_WRITTEN = {
    "a loop over Linears": Loop,
    "over range(x.shape[1])": LoopOverShape,
    "a loop over nn.LSTMCell": Cells,
    "layer-norm LSTM": NormLoop,
    "a module per step": CellPerStep,
}
