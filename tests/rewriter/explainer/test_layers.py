"""``(model, layer)``: whatever layer of the user's model is named, its input or output is explained.

The oracle cuts the model by hand: what is behind the layer is a model of its own, which stock shap explains.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rewriter import DeepExplainer, RewriteError, decompose
from tests.support.models.layers import (
    LAYERS,
    Apart,
    Copy,
    Crossed,
    Head,
    Listed,
    Merged,
    Residual,
    Rest,
    call_of,
    inputs,
    model_with,
)
from tests.support.stock import assert_same, stock

# float64.
EXACT = 1e-11


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("kind", LAYERS)
def test_input_of_a_layer(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()
    got = DeepExplainer((model, layer), background).shap_values(x)
    assert bool(decompose(model).report.islands) == (branches or kind == "the user's code")
    expected = stock(nn.Sequential(Copy(), model[1]), model[0](background).detach(), model[0](x).detach())
    if isinstance(layer, nn.LSTMCell):
        assert not expected[:, :-1].any()
        expected = expected[:, -1]
    assert_same(got, expected, EXACT)


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("kind", LAYERS)
def test_output_of_a_layer(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()
    explainer = DeepExplainer((model, layer), background, attribute_to_layer_input=False)
    given = [call_of(layer)(layer, model[0](each)).detach() for each in (background, x)]
    got, expected = explainer.shap_values(x), stock(Head(model[1]), *given)
    if isinstance(got, list):
        # Code may use more than the first of the tensors that the layer gives.
        assert not any(each.any() for each in got[1:])
        got = got[0]
    expected = expected[:, 0] if isinstance(layer, nn.LSTMCell) else expected
    assert_same(got, expected, EXACT)


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("kind", LAYERS)
def test_neuron_of_a_layer(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()

    class Neuron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.call = model[0], layer, call_of(layer)

        def forward(self, x: Tensor) -> Tensor:
            return self.call(self.layer, self.first(x))[:, -1, 1:2]

    first = isinstance(layer, nn.LSTM) and not layer.batch_first

    def neuron(y: Tensor) -> Tensor:
        return y[-1, :, 1] if first else y[..., 1].reshape(len(y), -1)[:, -1]

    expected = stock(Neuron(), background, x)[..., 0]
    explainer = DeepExplainer(model, background, output=(layer, neuron))
    assert_same(explainer.shap_values(x), expected, EXACT)
    if not first:
        place = (1,) if isinstance(layer, nn.LSTMCell) else (-1, 1)
        got = DeepExplainer(model, background, output=(layer, place)).shap_values(x)
        assert_same(got, expected, EXACT)


def test_a_neuron_with_respect_to_a_layer_before_it() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    got = DeepExplainer((model, model[1]), background, output=(model[2], 2)).shap_values(x)
    expected = stock(model[1:3], model[0](background).detach(), model[0](x).detach())
    assert_same(got, expected[..., 2], EXACT)
    same = DeepExplainer(
        (model, model[2]), background, output=(model[2], None), attribute_to_layer_input=False
    ).shap_values(x)
    norm = (model[:3](x) - model[:3](background).mean(0)).detach().numpy()
    np.testing.assert_allclose(same, np.einsum("mf,fk->mfk", norm, np.eye(4)), rtol=0, atol=EXACT)
    with pytest.raises(RewriteError, match=r"expected a key, an index, a function, or \(layer, neuron\)"):
        DeepExplainer(model, background, output=(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["LayerNorm", "the user's code", "Sequential"])
def test_what_goes_around_a_layer_counts_in_the_sums(kind: str) -> None:
    """With the check of additivity on: the rest is attributed to the model's inputs."""
    model = Residual(LAYERS[kind]()).double().eval()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    got = DeepExplainer((model, model.layer), background).shap_values(x)
    h, h0 = model.first(x).detach(), model.first(background).detach()
    assert_same(got, stock(Apart(model), [h0, h0], [h, h])[0], EXACT)


@pytest.mark.parametrize("time_first", [False, True])
def test_a_layer_whose_batch_is_merged_with_time(time_first: bool) -> None:
    model, (x, background) = Merged(time_first=time_first).double(), inputs()
    expected = stock(model, background, x)
    assert_same(DeepExplainer((model, model.layer), background).shap_values(x), expected, EXACT)
    references = background.expand(3, *background.shape)
    got = DeepExplainer((model, model.layer), background).shap_values(x, references=references)
    assert_same(got, expected, EXACT)


def test_references_of_its_own_for_each_sample_of_a_layer_that_takes_time_first() -> None:
    layer = nn.LSTM(4, 4)
    model, (x, _) = model_with(layer), inputs()
    # As many steps as samples: the batch cannot be told by its size.
    x = torch.randn(5, 5, 3, dtype=torch.float64)
    references = torch.randn(5, 1, 5, 3, dtype=torch.float64)
    got = DeepExplainer((model, layer), references[:, 0]).shap_values(x, references=references)
    for row in range(5):
        expected = stock(model[1], model[0](references[row]).detach(), model[0](x[row : row + 1]).detach())
        assert_same(got[row : row + 1], expected, EXACT)


def test_a_layer_that_takes_several_tensors() -> None:
    model, rest, (x, background) = Crossed().double().eval(), Rest().double().eval(), inputs()
    rest.load_state_dict(model.state_dict())

    def taken(x: Tensor) -> list[Tensor]:
        return [model.first(x).detach(), model.second(x).flip(1).detach()]

    explainer = DeepExplainer((model, model.layer), background)
    assert_same(explainer.shap_values(x), stock(rest, taken(background), taken(x)), EXACT)
    shown = explainer(x)
    assert shown.values.shape == (3, 40, 2)
    np.testing.assert_allclose(shown.data, torch.cat([each.flatten(1) for each in taken(x)], 1), atol=1e-14)


class Words(nn.Module):
    """Tokens, with positions, through a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.encoder(h).mean(1))


def test_every_layer_of_a_transformer_of_tokens() -> None:
    """What goes around a layer, from the tokens on, counts in the sums, which are checked."""
    model = Words().double().eval()
    x, background = torch.randint(9, (3, 5)), torch.randint(9, (4, 5))
    # Of torch's attention the projection is no call of a module, and there is a list of layers.
    unreached = ("self_attn.out_proj", "encoder.layers")
    for name, layer in model.named_modules():
        if not name or name == "places" or name.endswith(unreached):
            with pytest.raises(RewriteError, match=f"^{name or 'the model itself'}: "):
                DeepExplainer((model, layer), background)
            continue
        for to_input in (True, False):
            explainer = DeepExplainer((model, layer), background, attribute_to_layer_input=to_input)
            assert explainer.shap_values(x).any()


def test_members_of_containers() -> None:
    model = Listed().double()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    change = (model(x) - model(background).mean(0)).detach().numpy()
    for name in ("blocks.0", "blocks.1", "blocks.1.0", "blocks.1.1", "named.norm", "head", ""):
        layer = model.get_submodule(name)
        for to_input in (True, False):
            explainer = DeepExplainer((model, layer), background, attribute_to_layer_input=to_input)
            np.testing.assert_allclose(explainer.shap_values(x).sum(1), change, rtol=0, atol=EXACT)
            assert explainer.shap_values(x[:0]).shape == explainer.shap_values(x[:1])[:0].shape
            same = pickle.loads(pickle.dumps(explainer)).shap_values(x)
            np.testing.assert_array_equal(same, explainer.shap_values(x))


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
def test_layers_that_cannot_be_explained_are_named(branches: bool) -> None:
    class Odd(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 3, batch_first=True)
            self.empty = nn.Sequential()

        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, torch.tensor([5] * x.shape[0]), batch_first=True)
            x = super().forward(self.empty(x + self.lstm(packed)[1][0][0].unsqueeze(1)))[:, -1]
            return -x if branches and x.sum() > 1e9 else x

    model, (x, background) = Odd().double(), inputs()
    for layer, message in (
        (model.act, "^act: runs more than once, .* give each call a module of its own"),
        (model.unused, "^unused: is not reached, .* that the model calls"),
        (model.blocks, "^blocks: is not reached"),
        (model.lstm, "^lstm: takes a PackedSequence, of which nothing can be explained; explain the layer"),
        (nn.Linear(1, 1), "the Linear is not a part of the model"),
    ):
        with pytest.raises(RewriteError, match=message):
            DeepExplainer((model, layer), background)
    if not branches:
        with pytest.raises(RewriteError, match=r"^empty: hands on what it takes; explain the layer before"):
            DeepExplainer((model, model.empty), background)
    for layer, message in ((model.act, "act: runs more than once"), (model.unused, "unused: .* not reached")):
        with pytest.raises(RewriteError, match=message):
            DeepExplainer(model, background, output=(layer, 0))
    with pytest.raises(RewriteError, match=r"attribute_to_layer_input: expected \(model, layer\)"):
        DeepExplainer(model, background, attribute_to_layer_input=False)
    # A graph tells which of the tensors that a layer gives are used.
    if not branches:
        explainer = DeepExplainer((model, model.lstm), background, attribute_to_layer_input=False)
        assert explainer.shap_values(x).shape == (3, 1, 3, 1)


def test_a_decomposed_model_copies_and_pickles() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model, (x, background) = model_with(layer), inputs()
    expected = DeepExplainer((model, layer), background).shap_values(x)
    for made in (decompose(model), decompose(model, x)):
        for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            part = each.get_submodule("1.layer")
            assert_same(DeepExplainer((each, part), background).shap_values(x), expected, EXACT)
    explainer = DeepExplainer((model, layer), background, output=(model[1].head, (0, 1)))
    expected = explainer.shap_values(x)
    assert_same(pickle.loads(pickle.dumps(explainer)).shap_values(x), expected, EXACT)


def test_float32_is_judged_in_float64_where_it_rounds() -> None:
    layer = nn.LayerNorm(4)
    model = model_with(layer).float()
    x, background = (each.float() for each in inputs())
    explainer = DeepExplainer((model, layer), background, output=(model[1].head, (0, 1)))
    # Asked for more than float32 has.
    assert explainer.shap_values(x, check_additivity=1e-12).shape == (3, 5, 4)
