"""Torch's own modules that stay in a model, because something is hooked to them, keep a rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.operations.table import rule_of_module
from rewriter import DeepExplainer, decompose


class Noted:
    """A hook that changes nothing."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pass


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.Softmax(1), nn.MaxPool1d(3, 1), nn.GELU(), nn.LogSoftmax(-1), nn.AdaptiveMaxPool1d(2)],
    ids=lambda module: type(module).__name__,
)
def test_hooked_modules_are_exact(module: nn.Module) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), module, nn.Flatten(), nn.LazyLinear(2)).double()
    module.register_forward_hook(Noted())
    x, background = (torch.randn(n, 2, 7, dtype=torch.float64) for n in (3, 4))
    model(x)
    assert any(type(each) is type(module) for each in decompose(model).modules())
    values = DeepExplainer(model, background).shap_values(x)
    with torch.no_grad():
        f = (model(x) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), f, rtol=0, atol=1e-10)


def test_what_computes_something_else_has_none() -> None:
    class Own(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return input**2

    replaced = nn.ReLU()
    replaced.forward = torch.square  # type: ignore[method-assign]
    assert rule_of_module(Own()) is None
    assert rule_of_module(replaced) is None
    assert rule_of_module(nn.MaxPool1d(2, return_indices=True)) is None
