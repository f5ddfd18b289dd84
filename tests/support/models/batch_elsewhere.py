"""Models whose batch is not in dimension 0 everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeFirst(nn.Module):
    """An LSTM that is not batch first; what follows acts on (T, B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)
        self.score = nn.Linear(4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x.transpose(0, 1))
        result: Tensor = self.head(self.after(h))
        return result

    def after(self, h: Tensor) -> Tensor:
        return torch.relu(h).sum(0)


class Attention(TimeFirst):
    def after(self, h: Tensor) -> Tensor:
        weights = torch.softmax(self.score(torch.tanh(h)), 0)
        return (weights * h).sum(0)


class MaxOverTime(TimeFirst):
    def after(self, h: Tensor) -> Tensor:
        return h.max(0).values * torch.sigmoid(h[-1])


class TimeMajorRows(TimeFirst):
    def after(self, h: Tensor) -> Tensor:
        rows = torch.relu(h.reshape(-1, 4)) * torch.tanh(h).reshape(-1, 4)
        return rows.view(h.shape).sum(0)


class BatchMajorRows(TimeFirst):
    def after(self, h: Tensor) -> Tensor:
        rows = F.gelu(h.transpose(0, 1).reshape(-1, 4))
        return rows.view(h.shape[1], -1, 4).amax(1)


class InTheMiddle(TimeFirst):
    """Merges time, batch and pairs of features."""

    def after(self, h: Tensor) -> Tensor:
        merged = h.unflatten(2, (2, 2)).permute(2, 1, 0, 3).reshape(-1, 2)
        return torch.tanh(merged * merged).view(2, h.shape[1], -1, 2).sum(2).transpose(0, 1).flatten(1)


class BatchLast(TimeFirst):
    def after(self, h: Tensor) -> Tensor:
        last = h.permute(0, 2, 1)
        return F.softplus(last).mean(0).transpose(0, 1)


class Siamese(TimeFirst):
    """Runs both halves of a sequence as one batch."""

    def after(self, h: Tensor) -> Tensor:
        a, b = torch.relu(torch.cat([h[-1], h[0]])).chunk(2)
        return a * b


class Loop(TimeFirst):
    """Cannot be traced: the rewritten parts stay in the user's code."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def after(self, h: Tensor) -> Tensor:
        total = h[0]
        for step in h:
            total = self.act(total + step) if bool(h.isfinite().all()) else step
        return self.act(self.score(self.act(h))).sum(0) + total


MODELS = (
    TimeFirst,
    Attention,
    MaxOverTime,
    TimeMajorRows,
    BatchMajorRows,
    InTheMiddle,
    BatchLast,
    Siamese,
    Loop,
)


def additivity(values: np.ndarray, model: nn.Module, x: Tensor, background: Tensor) -> float:
    with torch.no_grad():
        f, f0 = model(x).double().numpy(), model(background).double().numpy().mean(0)
    return float(np.abs(values.sum((1, 2)) - (f - f0)).max() / max(1.0, np.abs(f).max()))
