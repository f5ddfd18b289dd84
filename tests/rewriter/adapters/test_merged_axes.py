"""``DeepExplainer`` knows in which order a model merges its batch with another dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose
from tests.support.models.batch_elsewhere import MODELS, TimeMajorRows, additivity
from tests.support.stock import stock

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

DOUBLE = torch.float64


@pytest.mark.parametrize("rows", [(3, 4), (1, 1), (4, 4), (2, 1)])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_stock_shap(kind: type[nn.Module], rows: tuple[int, int]) -> None:
    model = kind().double()
    x, background = (torch.randn(n, 8, 3, dtype=DOUBLE) for n in rows)
    values = DeepExplainer(model, background).shap_values(x)
    assert additivity(values, model, x, background) <= 1e-12
    np.testing.assert_allclose(values, stock(model, background, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_references_of_each_sample(kind: type[nn.Module]) -> None:
    model = kind().double()
    x, references = torch.randn(3, 4, 3, dtype=DOUBLE), torch.randn(3, 2, 4, 3, dtype=DOUBLE)
    values = DeepExplainer(model, references[0]).shap_values(x, references=references)
    with torch.no_grad():
        f = torch.stack([model(x)[k] - model(references[k]).mean(0) for k in range(3)]).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), f, rtol=0, atol=1e-12)


def test_a_sample_that_equals_its_reference() -> None:
    """The order is not read off rows that are alike."""
    model = TimeMajorRows().double()
    background = torch.randn(3, 4, 3, dtype=DOUBLE)
    x = torch.cat([background[:1], torch.randn(2, 4, 3, dtype=DOUBLE)])
    values = DeepExplainer(model, background).shap_values(x)
    assert additivity(values, model, x, background) <= 1e-12


class ReadsRows(nn.Module):
    """Reads (T, B) rows with a recurrent layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, S, 3) to (T B, S, 3)
        h = self.words(x.transpose(0, 1).flatten(0, 1))[0][:, -1]
        result: Tensor = self.head(h.view(x.shape[1], x.shape[0], -1).sum(0))
        return result


def test_recurrent_layer_over_such_rows() -> None:
    model = ReadsRows().double()
    x, background = (torch.randn(n, 3, 4, 3, dtype=DOUBLE) for n in (2, 5))
    values = DeepExplainer(model, background).shap_values(x)
    np.testing.assert_allclose(values, stock(model, background, x), rtol=0, atol=1e-12)
    with torch.no_grad():
        f = (decompose(model)(x) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2, 3)), f, rtol=0, atol=1e-12)
