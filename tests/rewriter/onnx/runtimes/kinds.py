"""Models of each kind, and the files and numbers that runtimes are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewriter import export_onnx
from tests.support.exports import leaves


class Classifier(nn.Module):
    """Two layers in both directions and a softmax over classes."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1]).softmax(-1)


class Attention(nn.Module):
    """Tokens, a GRU, attention over its outputs, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.gru(self.embed(tokens))
        return self.head(self.norm(x + self.attend(x, x, x)[0]).mean(1))


class Pooled(nn.Module):
    """A convolution, a GRU, and a weighted mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.weight = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))
        return (self.weight(y).softmax(1) * y).sum(1)


class Last(nn.Module):
    """A GRU whose last state is all that is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[1][-1])


STEPS, LONGER = 5, 9

# A model, and whether the batch comes first.
KINDS = {
    "LSTM": (lambda: nn.LSTM(3, 4), False),
    "GRU": (lambda: nn.GRU(3, 4), False),
    "RNN": (lambda: nn.RNN(3, 4), False),
    "LSTM, batch first": (lambda: nn.LSTM(3, 4, batch_first=True), True),
    "LSTM, both directions": (lambda: nn.LSTM(3, 4, bidirectional=True), False),
    "GRU, two layers": (lambda: nn.GRU(3, 4, 2), False),
    "LSTM, projected": (lambda: nn.LSTM(3, 5, proj_size=2), False),
    "GRU, last state": (Last, True),
    "LSTM classifier": (Classifier, True),
    "attention": (Attention, True),
    "convolution, pooling": (Pooled, True),
}
FORMS = ("flat", "Scan")


def write_files(folder: Path) -> None:
    """Write ``<kind>.<form>.onnx`` and, beside it, inputs of other sizes and what torch gives for them."""
    for name, (make, batch_first) in KINDS.items():
        torch.manual_seed(0)
        model = make().eval()
        for form in FORMS:
            sizes = [(2, STEPS), (3, LONGER if form == "Scan" else STEPS)]
            example, other = (
                torch.randint(0, 20, (rows, steps))
                if isinstance(model, Attention)
                else torch.randn(*((rows, steps) if batch_first else (steps, rows)), 3)
                for rows, steps in sizes
            )
            path = folder / f"{name}.{form}.onnx"
            export_onnx(model, example, path, loops=form == "Scan", certificate=False)
            with torch.no_grad():
                expected = leaves(model(other))
            numbers: dict[str, Any] = {f"y{k}": each.numpy() for k, each in enumerate(expected)}
            np.savez(path.with_suffix(".npz"), x=other.numpy(), **numbers)
