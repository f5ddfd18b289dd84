"""Results that earlier versions saved, and how they were made.

``python -m tests.support.saved`` in the root writes the file of this version; files of earlier ones stay as
they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rewriter import check_equivalence, decompose

FOLDER = Path(__file__).parent


class Writes(nn.Module):
    """Writes to tensors, some of which it makes: the graph calls functions of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return a row per sequence."""
        h = self.linear(x[:, 0])
        h += 0.5
        out = torch.zeros(x.shape[0], 6)
        out[:, :4] = h.tanh()
        out[:, 4:] = torch.full((x.shape[0], 2), 0.25) * x[:, 1, :2]
        last = torch.ones_like(out)
        last.copy_(out.exp())
        return out * last


def layers() -> dict[str, nn.Module]:
    """Return layers whose weights follow from no generator."""
    kinds: dict[str, nn.Module] = {
        "lstm": nn.LSTM(3, 2, 2, bidirectional=True, batch_first=True),
        "gru": nn.GRU(3, 4, batch_first=True),
        "rnn": nn.RNN(3, 4, batch_first=True),
        "transformer": nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu"),
        "convolution": nn.Sequential(nn.Conv1d(5, 3, 2), nn.Softplus(), nn.MaxPool1d(2), nn.Flatten()),
        "writes": Writes(),
    }
    for layer in kinds.values():
        for place, parameter in enumerate(layer.parameters()):
            values = torch.sin(torch.arange(parameter.numel()) * 1.7 + place) / 2
            parameter.data = values.view(parameter.shape)
        layer.eval()
    return kinds


def inputs(name: str) -> Tensor:
    """Return a batch for one of the layers."""
    width = 4 if name == "transformer" else 3
    return torch.cos(torch.arange(2 * 5 * width) * 0.9).view(2, 5, width)


def save(path: Path) -> None:
    """Write what is made of each layer, rolled and flat, with the reports."""
    found = {}
    for name, layer in layers().items():
        rolled = decompose(layer)
        report = check_equivalence(layer, rolled, inputs(name))
        found[name] = {"rolled": rolled, "flat": decompose(layer, inputs(name)), "equivalence": report}
    torch.save(found, path)
