"""Whole models with softmax are additive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.operations.softmax.atoms import SoftminAtoms
from rewriter import decompose
from tests.support.additive import assert_additive, assert_copies_compute_the_same, stock_error
from tests.support.models.softmaxes import AdditiveAttention, Call, InCode


class Masked(AdditiveAttention):
    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        scores = self.score(torch.tanh(self.key(states))).squeeze(-1)
        mask = torch.arange(x.shape[1]) > 2
        weights = scores.masked_fill(mask, -math.inf).softmax(-1)
        mean = torch.logsumexp(scores + torch.where(mask, -math.inf, 0.0), 1, keepdim=True)
        return self.head((weights.unsqueeze(-1) * states).sum(1)) * mean


MODELS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: AdditiveAttention(nn.Softmax(dim=1)),
    "function": lambda: AdditiveAttention(lambda scores: F.softmax(scores, 1)),
    "softmin": lambda: AdditiveAttention(nn.Softmin(dim=-2)),
    "masked": lambda: Masked(nn.Identity()),
    "code": lambda: InCode(nn.Softmax(dim=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_is_additive(name: str) -> None:
    model = MODELS[name]()
    x, background = torch.randn(4, 5, 3), torch.randn(7, 5, 3)
    assert_additive(model, x, background)
    if name != "function":
        assert_copies_compute_the_same(model, x)


def test_stock_shap_is_not_additive_there() -> None:
    model = AdditiveAttention(nn.Softmax(dim=1))
    assert stock_error(model, torch.randn(4, 5, 3), torch.randn(7, 5, 3)) > 1e-3


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_large_logits_stay_finite(offset: float) -> None:
    model = nn.Sequential(Call(lambda x: F.softmax(500 * x + offset, -1)), nn.Linear(3, 2))
    assert_additive(model, torch.randn(4, 3), torch.randn(7, 3))


def test_the_model_keeps_its_modules() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1), nn.Softmin(-1))
    before = list(model.modules())
    decompose(model)
    assert [type(each) for each in model] == [nn.Linear, nn.Softmax, nn.Softmin]
    assert list(model.modules()) == before
    assert isinstance(decompose(InCode(nn.Softmin(-1))).softmax, SoftminAtoms)
