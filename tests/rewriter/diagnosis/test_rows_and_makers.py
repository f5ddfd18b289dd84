"""Diagnoses of rows that are read as steps, of states for some numbers of rows, and of what made a number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rewriter import RewriteError, decompose, diagnose


class Last(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=batch_first), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0][:, -1])
        return y


class FixedState(Last):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x, (torch.zeros(1, 8, 4), torch.zeros(1, 8, 4)))[0][:, -1])
        return y


class WithoutGradients(Last):
    def forward(self, x: Tensor) -> Tensor:
        h = x[:, -1]
        with torch.no_grad():
            gate = torch.tanh(h)
        return h + gate


class Bucketed(Last):
    def forward(self, x: Tensor) -> Tensor:
        h = x[:, -1].contiguous()
        return torch.fmod(h, torch.bucketize(h, torch.linspace(-1, 1, 5)).abs() + 0.3)


X, BACKGROUND = torch.randn(2, 5, 3), torch.randn(8, 5, 3)


@pytest.mark.parametrize("decomposed", [False, True])
def test_rows_that_are_read_as_steps(decomposed: bool) -> None:
    model: nn.Module = Last(batch_first=False).eval()
    found = diagnose(decompose(model) if decomposed else model, X, BACKGROUND)
    assert "influence each other in lstm" in str(found)
    assert "reads dimension 0 as time; make it with batch_first=True" in str(found)
    assert not diagnose(decompose(Last(batch_first=True).eval()), X, BACKGROUND).broken


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_state_of_a_fixed_size(decomposed: bool) -> None:
    model: nn.Module = FixedState(batch_first=True).eval()
    advice = r"runs on 8 rows and not on 4: in lstm.*for x\.shape\[0\] of them"
    with pytest.raises(RewriteError, match=advice):
        diagnose(decompose(model) if decomposed else model, X, BACKGROUND)


@pytest.mark.parametrize("decomposed", [False, True])
def test_what_runs_without_gradients_is_not_for_decompose(decomposed: bool) -> None:
    model: nn.Module = WithoutGradients(batch_first=True).eval()
    (row,) = diagnose(decompose(model) if decomposed else model, X, BACKGROUND).broken
    assert row.operation == "tanh"
    assert "torch.no_grad" in row.advice
    assert "let it run with them" in row.advice
    assert "gives it its rule" not in row.advice


def test_what_made_a_number_is_told() -> None:
    line = f"test_rows_and_makers.py:{Bucketed.forward.__code__.co_firstlineno + 2}"
    broken = diagnose(decompose(Bucketed(batch_first=True).eval()), X, BACKGROUND).broken
    assert any(f"made by bucketize ({line})" in row.advice for row in broken)
