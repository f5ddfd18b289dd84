"""Neurons of layers that torch runs in a way of its own, or that have the batch elsewhere.

The oracle is the model up to the layer, as a model of its own, explained by stock shap.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose
from rewriter.explainer.additivity import AdditivityError
from tests.support.models.layers import Encoder, Merged, inputs, model_with
from tests.support.stock import assert_same, stock

# float64.
EXACT = 1e-11


class UpTo(nn.Module):
    """The encoder layer, as its paper has it, up to one of its layers."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name

    def forward(self, x: Tensor) -> Tensor:
        attended = self.layer.self_attn(x, x, x)[0]
        if self.name == "self_attn":
            return attended[:, 1]
        h = self.layer.norm1(x + attended)
        return h[:, 1] if self.name == "norm1" else self.layer.linear1(h)[:, 1]


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("name", ["self_attn", "norm1", "linear1"])
def test_layers_of_a_transformer_that_torch_runs_at_once(name: str, *, branches: bool) -> None:
    model = Encoder(branches=branches).double().eval()
    x, background = (torch.randn(n, 5, 4, dtype=torch.float64) for n in (3, 4))
    whole = model.enc.layers[0]
    layer = whole.get_submodule(name)
    got = DeepExplainer(model, background, output=(layer, 1)).shap_values(x)
    assert_same(got, stock(UpTo(whole, name), background, x), EXACT)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
def test_scripted_layers(*, branches: bool) -> None:
    x, background = inputs()
    model = model_with(nn.Identity(), branches=branches)
    linear = nn.Linear(4, 4).double()
    layer = model[1].layer = torch.jit.script(linear)
    before = set(vars(layer))
    got = DeepExplainer(model, background, output=(layer, 1)).shap_values(x)
    assert set(vars(layer)) == before
    expected = stock(nn.Sequential(model[0], linear, nn.Flatten()), background, x)
    assert_same(got, expected.reshape(3, 5, 3, 5, 4)[..., 1, :], EXACT)
    layer = model[1].layer = torch.jit.script(nn.Tanh())
    with pytest.raises(AdditivityError, match=r"without an exact rule is 1.layer \(scripted Tanh"):
        DeepExplainer(model, background, output=(layer, 1)).shap_values(x)


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize(
    ("kind", "options"), [(nn.LSTM, {}), (nn.GRU, {"num_layers": 2, "bidirectional": True})], ids=str
)
def test_layers_that_have_time_first(kind: Any, options: dict[str, int], *, branches: bool) -> None:
    layer = kind(4, 2 if options else 4, **options)
    model, (x, background) = model_with(layer, branches=branches), inputs()
    # As many steps as references: the batch cannot be told by its size.
    x, background = x[:, :3], background[:3, :3]

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = model[0], layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.first(x).transpose(0, 1))[0].transpose(0, 1).flatten(1)

    expected = stock(Given(), background, x).reshape(3, 3, 3, 3, 4)
    for neuron, value in ((None, expected), ((2, 1), expected[..., 2, 1])):
        assert_same(DeepExplainer(model, background, output=(layer, neuron)).shap_values(x), value, EXACT)


@pytest.mark.parametrize("time_first", [False, True])
def test_rows_that_are_merged_with_steps(*, time_first: bool) -> None:
    model, (x, background) = Merged(time_first=time_first).double(), inputs()
    expected = stock(nn.Sequential(model.layer, nn.Flatten()), background, x).reshape(3, 5, 3, 5, 3)
    got = DeepExplainer(model, background, output=(model.layer, None)).shap_values(x)
    assert_same(got, expected, EXACT)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gates_of_a_rewritten_layer(kind: str) -> None:
    class Last(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.rnn = getattr(nn, kind)(features, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    model, background, x = Last(3).double().eval(), *(torch.randn(rows, 6, 3).double() for rows in (4, 2))
    rewritten = decompose(model)
    made = rewritten.get_submodule("rnn.layer0.forward_input")
    # What takes the gates as they are: its input weights are the identity.
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 4
    behind = Last(gates).double().eval()
    state = {name: value for name, value in model.state_dict().items() if "hh" in name}
    state |= {"rnn.weight_ih_l0": torch.eye(gates).double(), "rnn.bias_ih_l0": torch.zeros(gates).double()}
    behind.load_state_dict(state)
    given, given0 = (made(each).detach() for each in (x, background))
    assert torch.allclose(behind(given), model(x), rtol=0, atol=EXACT)
    explainer = DeepExplainer((rewritten, made), background, attribute_to_layer_input=False)
    assert_same(explainer.shap_values(x), stock(behind, given0, given), EXACT)
    # And as a neuron: the second gate of the third step.
    neuron = DeepExplainer(rewritten, background, output=(made, (2, 1)))
    expected = stock(nn.Sequential(made, nn.Flatten()), background, x)[..., 2 * gates + 1]
    assert_same(neuron.shap_values(x), expected, EXACT)
