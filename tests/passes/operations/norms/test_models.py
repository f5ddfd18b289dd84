"""Whole models with norms are additive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.additive import assert_additive, stock_error
from tests.support.models.norms import CALLS, Call, InCode, random_weights


class Recurrent(nn.Module):
    """An LSTM with a norm on its states, and around the residual of a second."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.first = first
        self.again = nn.GRU(6, 6, batch_first=True)
        self.second = second
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = self.first(self.rnn(x)[0])
        states = states + self.second(self.again(states)[0])
        return self.head(states[:, -1])


class Transposed(nn.Module):
    """Channels in dimension 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM + LayerNorm": lambda: Recurrent(nn.LayerNorm(6), nn.LayerNorm((5, 6))),
    "residual + RMSNorm": lambda: Recurrent(nn.RMSNorm(6), nn.RMSNorm(6)),
    "GroupNorm": lambda: Recurrent(Transposed(nn.GroupNorm(2, 6)), Transposed(nn.GroupNorm(3, 6))),
    "InstanceNorm": lambda: Recurrent(Transposed(nn.InstanceNorm1d(6, affine=True)), nn.Identity()),
    "LocalResponseNorm": lambda: Recurrent(Transposed(nn.LocalResponseNorm(3, alpha=0.5)), nn.Identity()),
    "functions": lambda: Recurrent(
        Call(CALLS["layer_norm of a shape"], 6), Transposed(Call(lambda x, w, b: F.group_norm(x, 2, w, b), 6))
    ),
    "in code": lambda: Recurrent(InCode(nn.LayerNorm(6)), InCode(nn.RMSNorm(6))),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_is_additive(name: str) -> None:
    model = random_weights(MODELS[name]())
    assert_additive(model, torch.randn(4, 5, 3), torch.randn(7, 5, 3))


def test_constant_rows_are_additive() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    x, background = torch.randn(5, 4), torch.randn(7, 4)
    x[0] = 0
    x[1] = 0.7
    background[:3] = 0
    assert_additive(model, x, background)


def test_stock_shap_is_not_additive_there() -> None:
    assert stock_error(MODELS["LSTM + LayerNorm"](), torch.randn(4, 5, 3), torch.randn(7, 5, 3)) > 1e-3
