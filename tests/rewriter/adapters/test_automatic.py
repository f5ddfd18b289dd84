"""Stock shap and captum decompose by themselves, where that was asked for, what they do not explain right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
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
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from passes.errors import DeclinedError
from rewriter import RewriteError, decompose, register_captum, register_shap
from tests.support.models import gallery
from tests.support.models.explained_by_stock import NEEDED, PLAIN, Product, data, ready
from tests.support.models.recurrent_models import CellState
from tests.support.stock import quietly
from tests.support.watching import snapshot

# captum says of every model that its hooks are being set, and of torch that they are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already:UserWarning"),
]
# A few hundred roundings of float64, of outputs near 1.
EXACT = 1e-11


@pytest.fixture
def _automatic() -> Iterator[None]:
    register_shap(automatic=True)
    register_captum(automatic=True)
    try:
        yield
    finally:
        register_shap(automatic=False)
        register_captum(automatic=False)


@pytest.mark.usefixtures("_automatic")
@pytest.mark.parametrize("case", NEEDED)
def test_shap_gives_what_it_gives_for_a_model_decomposed_by_hand(case: str) -> None:
    model = ready(NEEDED[case]()).train()
    x, background = data(4, 6)
    before = snapshot(model)
    explainer = shap.DeepExplainer(model, background)
    values = quietly(explainer, x)
    assert snapshot(model) == before
    by_hand = shap.DeepExplainer(decompose(model), background)
    np.testing.assert_array_equal(values, quietly(by_hand, x))
    np.testing.assert_array_equal(explainer.expected_value, by_hand.expected_value)
    with torch.no_grad():
        f = (model.eval()(x) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), f, rtol=0, atol=EXACT)


@pytest.mark.usefixtures("_automatic")
@pytest.mark.parametrize("case", NEEDED)
def test_captum_gives_what_it_gives_for_a_model_decomposed_by_hand(case: str) -> None:
    model = ready(NEEDED[case]()).eval()
    x, baselines = data(4, 6)
    before = snapshot(model)
    many, one = DeepLiftShap(model), DeepLift(model)
    kept = vars(many).copy(), vars(one).copy()
    values = many.attribute(x, baselines, target=1)
    alone, delta = one.attribute(x, baselines[:1], target=1, return_convergence_delta=True)
    assert snapshot(model) == before
    assert (vars(many), vars(one)) == kept
    rewritten = decompose(model)
    assert torch.equal(values, DeepLiftShap(rewritten).attribute(x, baselines, target=1))
    assert torch.equal(alone, DeepLift(rewritten).attribute(x, baselines[:1], target=1))
    assert delta.abs().max() < EXACT
    with torch.no_grad():
        f = (model(x) - model(baselines).mean(0))[:, 1]
    torch.testing.assert_close(values.sum((1, 2)), f, rtol=0, atol=EXACT)


@pytest.mark.usefixtures("_automatic")
def test_layers_and_neurons() -> None:
    model = nn.Sequential(nn.Linear(3, 6), gallery.Widened("GRU")).double().eval()
    rewritten = decompose(model)
    x, background = data(3, 4)
    name = "1.norm"
    layers = model.get_submodule(name), rewritten.get_submodule(name)
    for kind, call in {
        LayerDeepLift: lambda e: e.attribute(x, background[:1], target=0),
        LayerDeepLiftShap: lambda e: e.attribute(x, background, target=0, attribute_to_layer_input=True),
        NeuronDeepLift: lambda e: e.attribute(x, (0, 1), background[:1]),
        NeuronDeepLiftShap: lambda e: e.attribute(x, (0, 1), background),
    }.items():
        found, expected = (call(kind(m, layer)) for m, layer in zip((model, rewritten), layers, strict=True))
        assert torch.equal(found, expected), kind
    theirs, ours = (
        quietly(shap.DeepExplainer(pair, background), x)
        for pair in zip((model, rewritten), layers, strict=True)
    )
    np.testing.assert_array_equal(theirs, ours)
    with torch.no_grad():
        f = (model(x) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(theirs.sum((1, 2)), f, rtol=0, atol=EXACT)
    with pytest.raises(RewriteError, match="not a part of the model"):
        shap.DeepExplainer((model, nn.Tanh()), background)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.unused = gallery.Classifier("GRU"), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)


@pytest.mark.usefixtures("_automatic")
def test_a_layer_that_is_not_called_is_named() -> None:
    model = WithUnused()
    with pytest.raises(RewriteError, match="unused: is not reached"):
        shap.DeepExplainer((model, model.unused), torch.randn(3, 5, 3))


@pytest.mark.usefixtures("_automatic")
def test_several_inputs_ranks_and_a_program() -> None:
    model = CellState("LSTMCell").double()
    x, background = ([torch.randn(n, k, dtype=torch.float64) for k in (3, 2, 2)] for n in (2, 5))
    found, expected = (quietly(shap.DeepExplainer(m, background), x) for m in (model, decompose(model)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    classifier = gallery.Classifier("GRU").double()
    (rows, references) = data(3, 4)
    found, expected = (
        quietly(shap.DeepExplainer(m, references), rows, ranked_outputs=1)
        for m in (classifier, decompose(classifier))
    )
    np.testing.assert_array_equal(found[0], expected[0])
    product = Product().double()
    program = torch.export.export(product, (rows,), dynamic_shapes=({0: torch.export.Dim("B")},))
    values = quietly(shap.DeepExplainer(program, references), rows)
    with torch.no_grad():
        f = (product(rows) - product(references).mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), f, rtol=0, atol=EXACT)


@pytest.mark.usefixtures("_automatic")
def test_wrappers_of_captum_are_exact() -> None:
    model = gallery.Classifier().double()
    x, baselines = data(4, 4)
    explainer = NoiseTunnel(DeepLift(model))
    found = explainer.attribute(x, nt_samples=1, stdevs=1e-300, baselines=baselines, target=1)
    change = (model(x) - model(baselines)).detach()[:, 1]
    torch.testing.assert_close(found.sum((1, 2)), change, rtol=0, atol=EXACT)


def is_decomposed(model: nn.Module) -> bool:
    explainer = shap.DeepExplainer(model, torch.randn(3, 5, 3))
    return explainer.explainer.model is not model


def captum_delta(explainer: Any) -> float:
    x, baselines = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    return float(explainer.attribute(x, baselines, target=0, return_convergence_delta=True)[1].abs().max())


def test_it_is_off_until_asked_for_and_undone_by_a_call() -> None:
    model = gallery.Classifier()
    explainer = DeepLift(model)
    assert not is_decomposed(model)
    assert captum_delta(explainer) > 1e-3
    for _ in range(2):
        register_shap(automatic=True)
        register_captum(automatic=True)
    # Called as it always was, it changes nothing.
    register_shap()
    register_captum()
    assert is_decomposed(model)
    assert captum_delta(explainer) < 1e-6
    for _ in range(2):
        register_shap(automatic=False)
        register_captum(automatic=False)
    assert not is_decomposed(model)
    assert captum_delta(explainer) > 1e-3


@pytest.mark.usefixtures("_automatic")
def test_a_model_that_changes_is_explained_as_it_is_now() -> None:
    model = nn.Sequential(gallery.Classifier(), nn.Linear(2, 2), nn.Softmax(1)).double()
    explainer = DeepLift(model)
    x, baselines = data(3, 3)

    def gap() -> float:
        change = (model(x) - model(baselines)).detach()[:, 0]
        found = explainer.attribute(x, baselines, target=0).detach()
        return float((found.sum((1, 2)) - change).abs().max())

    assert gap() < EXACT
    with torch.no_grad():
        model[1].weight.mul_(-2)
    assert gap() < EXACT
    model[1] = nn.Linear(2, 2).double()
    assert gap() < EXACT
    model[2] = nn.Identity()
    assert gap() < EXACT


@pytest.mark.usefixtures("_automatic")
def test_a_proof_is_made_once_for_an_explainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewriter.adapters import automatic

    made = []

    def noted(model: nn.Module) -> nn.Module:
        made.append(model)
        return decompose(model)

    monkeypatch.setattr(automatic, "decompose", noted)
    needed, plain = DeepLift(gallery.Classifier().double()), DeepLift(ready(PLAIN["tanh"]()))
    for explainer in (needed, plain):
        made.clear()
        for _ in range(3):
            explainer.attribute(*data(2, 2), target=0)
        assert len(made) == 1


@pytest.mark.usefixtures("_automatic")
def test_what_cannot_be_decomposed_is_named_and_the_advice_works() -> None:
    model = gallery.Classifier()
    weight_norm(model.rnn, "weight_hh_l0")
    background, x = torch.randn(3, 5, 3), torch.randn(2, 5, 3)
    with pytest.raises(DeclinedError, match=r"rnn \(") as raised:
        shap.DeepExplainer(model, background)
    assert "rewriter.decompose(model, strict=False)" in str(raised.value)
    assert "rewriter.register_shap(automatic=False)" in str(raised.value)
    with pytest.raises(DeclinedError, match=r"rewriter.register_captum\(automatic=False\)"):
        DeepLift(model).attribute(x, target=0)
    quietly(shap.DeepExplainer(decompose(model, strict=False), background), x)
    register_shap(automatic=False)
    quietly(shap.DeepExplainer(model, background), x)


@pytest.mark.usefixtures("_automatic")
def test_threads() -> None:
    models = [gallery.Classifier(kind).double() for kind in ("LSTM", "GRU")]
    x, background = data(2, 3)
    expected = [quietly(shap.DeepExplainer(decompose(m), background), x) for m in models]
    shared = DeepLiftShap(models[0])
    wrong: list[object] = []

    def work(k: int) -> None:
        try:
            for _ in range(2):
                values = shap.DeepExplainer(models[k % 2], background).shap_values(x, check_additivity=False)
                if not np.array_equal(values, expected[k % 2]):
                    wrong.append(k)
                values = shared.attribute(x, background, target=0).detach().numpy()
                # captum adds up in another order.
                if np.abs(values - expected[0][..., 0]).max() > 1e-13:
                    wrong.append(k)
                models[k % 2](x)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
