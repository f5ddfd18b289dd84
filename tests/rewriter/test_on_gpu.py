"""On a GPU values are those of the CPU: ``make gpu`` runs these where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

STEPS, FEATURES, UNITS = 12, 3, 8
# float32 on both, sums of some thousand terms in another order; relative to the largest value.
CLOSE = 1e-5


class Recurrent(nn.Module):
    """A recurrent layer of any kind, and a head on its last step."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(FEATURES, UNITS, batch_first=True, **options)
        width = (options.get("proj_size") or UNITS) * (1 + options.get("bidirectional", False))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """A GRU that is read by attention, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.GRU(FEATURES, UNITS, batch_first=True), nn.LayerNorm(UNITS)
        self.score, self.head = nn.Linear(UNITS, 1), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.rnn(x)[0])
        return self.head((self.score(h).softmax(1) * h).sum(1))


class Loop(nn.Module):
    """A loop over a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(FEATURES, UNITS), nn.Linear(UNITS, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), UNITS)
        for t in range(STEPS):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: Recurrent("LSTM"),
    "GRU": lambda: Recurrent("GRU"),
    "RNN": lambda: Recurrent("RNN"),
    "stack": lambda: Recurrent("LSTM", num_layers=2, bidirectional=True),
    "projected": lambda: Recurrent("LSTM", proj_size=4),
    "attention": Attention,
    "loop": Loop,
}


@pytest.mark.parametrize("nearer", [{}, {"blocks": 2, "segments": 2}, {"cells": "shapley"}], ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_values_are_those_of_the_cpu(name: str, nearer: dict[str, Any]) -> None:
    model = MODELS[name]().eval()
    x, background = torch.randn(4, STEPS, FEATURES), torch.randn(5, STEPS, FEATURES)
    expected = DeepExplainer(model, background).shap_values(x, **nearer)
    moved = MODELS[name]().eval().cuda()
    moved.load_state_dict(model.state_dict())
    got = DeepExplainer(moved, background.cuda()).shap_values(x.cuda(), **nearer)
    assert np.abs(got - expected).max() <= CLOSE * np.abs(expected).max()


def test_values_add_up_on_the_gpu() -> None:
    model = Recurrent("LSTM").eval().cuda()
    x, background = (torch.randn(rows, STEPS, FEATURES).cuda() for rows in (4, 5))
    values = DeepExplainer(model, background).shap_values(x)
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).cpu().numpy()
    assert np.abs(values.sum((1, 2)) - change).max() < CLOSE
