"""What a function that picks the output computes has the rules that the model's own operations have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from tests.support.models import gallery
from tests.support.stock import assert_same, stock

FUNCTIONS: dict[str, Callable[[Any], Tensor]] = {
    "softmax": lambda y: y.softmax(-1)[:, 1:],
    "a module": nn.Softmax(-1),
    "product": lambda y: (y[:, :1] * y[:, 1:]).exp(),
    "in place": lambda y: y.clone().sigmoid_(),
    "norm": lambda y: torch.linalg.vector_norm(y, dim=1, keepdim=True),
    "linear": lambda y: y.sum(1, keepdim=True),
}


class Computed(nn.Module):
    """The same, as a part of the model."""

    def __init__(self, model: nn.Module, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_an_output_function_computes_has_rules(name: str) -> None:
    model, function = gallery.Classifier("GRU").double().eval(), FUNCTIONS[name]
    x, background = torch.randn(3, 5, 3).double(), torch.randn(4, 5, 3).double()
    expected = stock(Computed(model, function), background, x)
    # As close as stock shap on the decomposed whole, in float64.
    assert_same(DeepExplainer(model, background, output=function).shap_values(x), expected, 1e-11)
    of_layer = DeepExplainer(model, background, output=(model, function))
    assert_same(of_layer.shap_values(x), expected, 1e-11)


def test_in_float32_it_is_held_to_float64() -> None:
    model = gallery.Classifier("LSTM").eval()
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    explainer = DeepExplainer(model, background, output=lambda y: 1e-3 * y.softmax(-1)[:, 1] + 5)
    change = (1e-3 * model(x).softmax(-1)[:, 1]).detach().numpy() + 5 - explainer.expected_value
    # Rounding of 5 in float32.
    assert np.abs(explainer.shap_values(x).sum((1, 2)) - change).max() < 2e-6


def test_an_output_function_without_a_rule_is_refused() -> None:
    model, x, background = gallery.Classifier("GRU"), torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    with pytest.raises(AssertionError, match="in output="):
        DeepExplainer(model, background, output=lambda y: y + y.detach().tanh()).shap_values(x)
