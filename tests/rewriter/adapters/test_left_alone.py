"""What stock shap and captum explain right is left to them, bit for bit, where they decompose the rest."""

from __future__ import annotations

import numpy as np
import pytest
import shap
import torch
from captum.attr import DeepLiftShap, NeuronDeepLiftShap
from torch import Tensor

from rewriter import register_captum, register_shap
from tests.support.models.explained_by_stock import PLAIN, data, ready
from tests.support.stock import quietly

pytestmark = [
    # captum says of every model that its hooks are being set.
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already:UserWarning"),
]


@pytest.mark.parametrize("case", PLAIN)
def test_what_shap_explains_right_is_left_to_it(case: str) -> None:
    model = ready(PLAIN[case]())
    x, background = data(4, 6)
    expected = quietly(shap.DeepExplainer(model, background), x)
    with torch.no_grad():
        f = (model.eval()(x) - model(background).mean(0)).numpy()
    # It is right: that is why. Of the size of its threshold for small differences.
    np.testing.assert_allclose(expected.sum((1, 2)), f, rtol=0, atol=1e-6)
    register_shap(automatic=True)
    try:
        for rows in (background, background[:1]):
            explainer = shap.DeepExplainer(model.train(), rows)
            assert explainer.explainer.model is model
            # As stock shap does, for good.
            assert not model.training
        values = quietly(shap.DeepExplainer(model, background), x)
    finally:
        register_shap(automatic=False)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("case", PLAIN)
def test_what_captum_explains_right_is_left_to_it(case: str) -> None:
    model = ready(PLAIN[case]()).eval()
    x, baselines = data(4, 6)
    explainers = (
        DeepLiftShap(model),
        NeuronDeepLiftShap(model, model.get_submodule(list(dict(model.named_children()))[-1])),
    )

    def explained() -> list[Tensor]:
        return [
            explainers[0].attribute(x, baselines, target=1),
            explainers[1].attribute(x, (1,), baselines),
        ]

    expected = explained()
    register_captum(automatic=True)
    try:
        found = explained()
    finally:
        register_captum(automatic=False)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore::UserWarning")  # shap's and Keras's, of each other
def test_keras_on_tensorflow_is_left_alone() -> None:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    x, background = (np.random.default_rng(n).normal(size=(n, 3)).astype("float32") for n in (2, 5))
    register_shap(automatic=True)
    try:
        found = quietly(shap.DeepExplainer(model, background), x)
    finally:
        register_shap(automatic=False)
    np.testing.assert_array_equal(found, quietly(shap.DeepExplainer(model, background), x))
