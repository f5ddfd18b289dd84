"""Models with one recurrent layer or cell, and the options of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.models import gallery

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM without bias": ("LSTM", {"bias": False}),
    "LSTM 2 layers, bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True, "dropout": 0.3}),
    "LSTM projected": ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    "GRU": ("GRU", {}),
    "GRU 2 layers, bidirectional": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "RNN": ("RNN", {}),
    "RNN relu, bidirectional": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}


class CellState(nn.Module):
    """One step of a cell; x, h and c in one input or in several."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(3, 2, **options)
        self.lstm = kind == "LSTMCell"

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> torch.Tensor:
        new = self.cell(x, state if self.lstm else state[0])
        return torch.cat(new, -1) if self.lstm else new


class Packs(nn.Module):
    """A packed batch of equal lengths inside the model, in an order that is not the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.packing = gallery.Packing("LSTM", bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.packing(x)[0][:, -1]


class TimeFirst(nn.Module):
    """The layer wants (T, B, I), the model takes (B, T, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, num_layers=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(x.transpose(0, 1))[1][-1])
