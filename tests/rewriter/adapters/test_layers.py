"""Every layer of the user's model has a name in the decomposed one, for stock shap and captum as well.

The oracle is the model behind the layer, made by hand, explained as a model of its own.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

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
)
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose
from tests.support.models.layers import (
    LAYERS,
    Copy,
    Crossed,
    Encoder,
    Head,
    Listed,
    Merged,
    call_of,
    inputs,
    model_with,
)
from tests.support.models.overwriting import WAYS, Overwritten
from tests.support.stock import assert_same, stock
from tests.support.watching import snapshot

# captum says of every model that its hooks are being set, and of torch that they are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already:UserWarning"),
]
# float64.
EXACT = 1e-11
COPIES: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "as it is": lambda model, x: decompose(model),
    "flat": decompose,
    "pickled": lambda model, x: pickle.loads(pickle.dumps(decompose(model))),
    "copied": lambda model, x: copy.deepcopy(decompose(model)),
}


def behind(model: nn.Module) -> nn.Module:
    return nn.Sequential(Copy(), model[1])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("kind", LAYERS)
def test_shap(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()
    exact = decompose(model)
    exact(x)
    before = snapshot(exact)
    explained = exact.get_submodule("1.layer")
    got = shap.DeepExplainer((exact, explained), background).shap_values(x, check_additivity=False)
    assert snapshot(exact) == before
    expected = stock(behind(model), model[0](background).detach(), model[0](x).detach())
    expected = expected[:, -1] if isinstance(layer, nn.LSTMCell) else expected
    assert_same(got, expected, EXACT)


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("kind", LAYERS)
def test_captum(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()
    exact = decompose(model)
    exact(x)
    before = snapshot(exact)
    explained = exact.get_submodule("1.layer")
    h, h0 = model[0](x).detach(), model[0](background).detach()
    y, y0 = (call_of(layer)(layer, each.clone()).detach() for each in (h, h0))
    whole = decompose(behind(model)), decompose(Head(model[1]))
    cell = isinstance(layer, nn.LSTMCell)

    def alike(got: Any, expected: Tensor) -> None:
        found = got[0] if isinstance(got, tuple) else got
        expected = expected[:, -1] if cell else expected
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)

    for one, shap_like in ((LayerDeepLift, False), (LayerDeepLiftShap, True)):
        own, refs, a, b = (
            (DeepLiftShap, background, h0, y0) if shap_like else (DeepLift, background[:3], h0[:3], y0[:3])
        )
        got = one(exact, explained).attribute(x, refs, target=1, attribute_to_layer_input=True)
        alike(got, own(whole[0]).attribute(h, a, target=1))
        alike(one(exact, explained).attribute(x, refs, target=1), own(whole[1]).attribute(y, b, target=1))
    assert snapshot(exact) == before


@pytest.mark.parametrize("form", COPIES)
@pytest.mark.parametrize("kind", ["ReLU in place", "LayerNorm", "TransformerEncoderLayer", "GRU", "Linear"])
def test_whatever_became_of_the_decomposed_model(kind: str, form: str) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer), inputs()
    exact = COPIES[form](model, x)
    names = {name for name, _ in model.named_modules()}
    assert names <= {name for name, _ in exact.named_modules()}
    got = shap.DeepExplainer((exact, exact.get_submodule("1.layer")), background).shap_values(x)
    expected = stock(behind(model), model[0](background).detach(), model[0](x).detach())
    assert_same(got, expected, EXACT)


@pytest.mark.parametrize(
    "kind", ["ReLU in place", "LayerNorm", "LSTM", "TransformerEncoderLayer", "Sequential"]
)
def test_neurons(kind: str) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer), inputs()
    exact = decompose(model)
    explained = exact.get_submodule("1.layer")

    class Neuron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.call = model[0], layer, call_of(layer)

        def forward(self, x: Tensor) -> Tensor:
            return self.call(self.layer, self.first(x))[:, -1]

    whole = decompose(Neuron())
    for neuron, own, refs in (
        (NeuronDeepLift, DeepLift, background[:3]),
        (NeuronDeepLiftShap, DeepLiftShap, background),
    ):
        got = neuron(exact, explained).attribute(x, (4, 2), refs)
        torch.testing.assert_close(got, own(whole).attribute(x, refs, target=2), rtol=0, atol=EXACT)
    got = NeuronDeepLift(exact, explained).attribute(
        x, (4, 2), background[:3], attribute_to_neuron_input=True
    )
    expected = torch.zeros_like(x)
    expected[:, 4] = (x[:, 4] - background[:3, 4]) * model[0].weight[2].detach()
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)


class Tokens(nn.Module):
    """Looks integers up."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rest(self.words(tokens))

    def rest(self, h: Tensor) -> Tensor:
        return self.head(self.rnn(h)[0][:, -1])


class Found(Tokens):
    def forward(self, h: Tensor) -> Tensor:
        return self.rest(h)


def test_an_embedding_is_explained_by_what_it_finds() -> None:
    model, rest = Tokens().double(), Found().double()
    rest.load_state_dict(model.state_dict())
    x, background = torch.randint(9, (3, 5)), torch.randint(9, (4, 5))
    exact = decompose(model)
    expected = stock(rest, model.words(background).detach(), model.words(x).detach())
    for name in ("words", "rnn", "words_output"):
        explainer = shap.DeepExplainer((exact, exact.get_submodule(name)), background)
        assert_same(explainer.shap_values(x), expected, EXACT)


def test_what_cannot_be_explained_is_named() -> None:
    x, background = torch.randn(3, 3), torch.randn(4, 3)
    model = Listed()
    exact = decompose(model)
    act = exact.get_submodule("act")
    with pytest.raises(RewriteError, match=r"^act: runs more than once"):
        shap.DeepExplainer((exact, act), background)
    with pytest.raises(RewriteError, match=r"^act: runs more than once"):
        LayerDeepLift(exact, act).attribute(x, background[:3], target=0)
    with pytest.raises(
        RewriteError, match=r"LayerNorm is not a part of the decomposed model; take the layer from"
    ):
        LayerDeepLift(exact, model.named["norm"]).attribute(x, background[:3], target=0)
    x, background = inputs()
    exact = decompose(Crossed().double().eval())
    with pytest.raises(RewriteError, match=r"^layer: its input is .*in dimension 0, at most 1: explain it"):
        shap.DeepExplainer((exact, exact.get_submodule("layer")), background)


@pytest.mark.parametrize("time_first", [False, True])
def test_rows_that_are_merged_with_steps(*, time_first: bool) -> None:
    model, (x, background) = Merged(time_first=time_first).double(), inputs()
    exact = decompose(model)
    got = shap.DeepExplainer((exact, exact.get_submodule("layer")), background).shap_values(x)
    assert_same(got, stock(model, background, x), EXACT)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
def test_layers_without_hooks_are_named(*, branches: bool) -> None:
    """Scripted ones, and those that the model does not call."""
    x, background = inputs()
    model = model_with(nn.Identity(), branches=branches)
    model[1].layer = torch.jit.script(nn.Linear(4, 4).double())
    cases = [(model, x, "1.layer", "is scripted, and takes no hooks.*rewriter.DeepExplainer")]
    wide, wide0 = (torch.randn(n, 5, 4, dtype=torch.float64) for n in (3, 4))
    cases += [
        (Encoder(branches=branches).double().eval(), wide, name, "is not reached")
        for name in ("enc.layers", "enc.layers.0.self_attn.out_proj")
    ]
    for model, x, name, message in cases:
        exact = decompose(model)
        layer, refs = exact.get_submodule(name), background if x is not wide else wide0
        exact(x)
        before = snapshot(exact)
        with pytest.raises(RewriteError, match=f"^{name}: {message}"):
            shap.DeepExplainer((exact, layer), refs)
        with pytest.raises(RewriteError, match=f"^{name}: {message}"):
            LayerDeepLift(exact, layer).attribute(x, refs[:3], target=0)
        with pytest.raises(RewriteError, match=f"^{name}: {message}"):
            NeuronDeepLift(exact, layer).attribute(x, 0, refs[:3])
        assert snapshot(exact) == before


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("way", WAYS)
def test_layers_in_place_that_are_read_by_another_name(way: str, *, branches: bool) -> None:
    """Against our own explainer, which has an oracle of its own for them."""
    layer = nn.SiLU(inplace=True)
    model = Overwritten(layer, WAYS[way], before=True, branches=branches).double().eval()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    exact = decompose(model)
    explained = exact.get_submodule("layer")
    expected = DeepExplainer((model, layer), background).shap_values(x)
    got = shap.DeepExplainer((exact, explained), background).shap_values(x, check_additivity=False)
    assert_same(got, expected, EXACT)
    for to_input in (True, False):
        expected = DeepExplainer((model, layer), background, attribute_to_layer_input=to_input).shap_values(x)
        found = LayerDeepLiftShap(exact, explained).attribute(
            x, background, target=1, attribute_to_layer_input=to_input
        )
        assert_same(found.detach().numpy(), expected[..., 1], EXACT)


def test_a_failure_leaves_nothing_behind() -> None:
    model = model_with(nn.LayerNorm(4))
    exact, (x, background) = decompose(model), inputs()
    wrong = torch.randn(2, 5, 7, dtype=torch.float64)
    exact(x)
    before = snapshot(exact)
    explainer = shap.DeepExplainer((exact, exact.get_submodule("1.layer")), background)
    with pytest.raises(RuntimeError):
        explainer.shap_values(wrong)
    with pytest.raises(IndexError):
        LayerDeepLift(exact, exact.get_submodule("1.layer")).attribute(x, background[:3], target=9)
    assert snapshot(exact) == before
