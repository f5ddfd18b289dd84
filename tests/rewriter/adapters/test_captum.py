"""captum's DeepLift and DeepLiftShap are exact on what decompose returns."""

from __future__ import annotations

import pytest
import shap
import torch
from captum.attr import (
    DeepLift,
    DeepLiftShap,
    LayerDeepLift,
    LayerDeepLiftShap,
    NeuronDeepLift,
    NeuronDeepLiftShap,
    NoiseTunnel,
)
from torch import nn

from rewriter import decompose, register_captum
from tests.support.models import gallery
from tests.support.watching import snapshot

# captum says of every model that its hooks are being set, and of torch that they are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
]
pytestmark.append(pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already:UserWarning"))
ADDITIVITY = {torch.float32: 1e-6, torch.float64: 1e-11}
MODELS = {
    "LSTM": lambda: gallery.Classifier("LSTM", num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: gallery.Classifier("GRU", bidirectional=True),
    "RNN": lambda: gallery.Classifier("RNN", nonlinearity="relu"),
    "cell in a loop": gallery.ReadsLength,
    "control flow": gallery.ValueControlFlow,
    "with torch's own activations": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), gallery.Classifier(), nn.Sigmoid()
    ),
}


@pytest.mark.parametrize("dtype", ADDITIVITY, ids=str)
@pytest.mark.parametrize("case", MODELS)
def test_convergence_delta(case: str, dtype: torch.dtype) -> None:
    rewritten = decompose(MODELS[case]().to(dtype))
    x, baselines = torch.randn(4, 6, 3, dtype=dtype), torch.randn(5, 6, 3, dtype=dtype)
    before = snapshot(rewritten)
    _, delta = DeepLiftShap(rewritten).attribute(x, baselines, target=1, return_convergence_delta=True)
    assert delta.abs().max() <= ADDITIVITY[dtype]
    _, delta = DeepLift(rewritten).attribute(x, baselines[:1], target=0, return_convergence_delta=True)
    assert delta.abs().max() <= ADDITIVITY[dtype]
    assert snapshot(rewritten) == before


def test_same_values_as_shap() -> None:
    rewritten = decompose(gallery.Classifier("GRU").double())
    x, background = (torch.randn(n, 6, 3, dtype=torch.float64) for n in (2, 4))
    values = shap.DeepExplainer(rewritten, background).shap_values(x)
    for target in (0, 1):
        got = DeepLiftShap(rewritten).attribute(x, background, target=target)
        torch.testing.assert_close(got, torch.from_numpy(values[..., target]), rtol=0, atol=1e-13)


def test_layers_and_neurons() -> None:
    model = decompose(nn.Sequential(nn.Linear(3, 6), gallery.Widened("GRU")).double())
    x, baselines = (torch.randn(3, 5, 3, dtype=torch.float64) for _ in range(2))
    f, f0 = model(x)[:, 0], model(baselines)[:, 0]
    layer, head = model.get_submodule("1.norm"), model.get_submodule("1.head")
    for values, reference in (
        (LayerDeepLift(model, layer).attribute(x, baselines, target=0), f0),
        (LayerDeepLiftShap(model, layer).attribute(x, baselines, target=0), f0.mean()),
        (NeuronDeepLift(model, head).attribute(x, 0, baselines), f0),
        (NeuronDeepLiftShap(model, head).attribute(x, 0, baselines), f0.mean()),
    ):
        torch.testing.assert_close(values.sum((1, 2)), f - reference, rtol=0, atol=1e-11)


def test_nothing_is_left_behind_by_a_failure() -> None:
    rewritten = decompose(gallery.Classifier())
    x = torch.randn(2, 6, 3)
    before = snapshot(rewritten)
    with pytest.raises(IndexError):
        DeepLift(rewritten).attribute(x, target=7)
    assert snapshot(rewritten) == before


def test_foreign_models_get_stock_behaviour() -> None:
    register_captum()
    register_captum()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    _, delta = DeepLift(model).attribute(x, target=0, return_convergence_delta=True)
    assert delta.abs().max() < 1e-11
    # Guarded once, and so is what others call past captum's own decorator.
    assert not hasattr(DeepLift.attribute.__wrapped__, "__wrapped__")


def test_wrappers_that_call_past_a_decorator_are_exact() -> None:
    model = gallery.Classifier().double()
    x, baselines = (torch.randn(4, 6, 3, dtype=torch.float64) for _ in range(2))
    explainer = NoiseTunnel(DeepLift(decompose(model)))
    found = explainer.attribute(x, nt_samples=1, stdevs=1e-300, baselines=baselines, target=1)
    change = (model(x) - model(baselines)).detach()[:, 1]
    torch.testing.assert_close(found.sum((1, 2)), change, rtol=0, atol=1e-12)


def test_stock_captum_cannot_explain_the_original() -> None:
    model = gallery.Classifier()
    x, baselines = torch.randn(4, 6, 3), torch.randn(5, 6, 3)
    _, delta = DeepLiftShap(model).attribute(x, baselines, target=1, return_convergence_delta=True)
    assert delta.abs().max() > 1e-3
