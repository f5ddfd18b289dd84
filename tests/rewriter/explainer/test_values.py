"""``rewriter.DeepExplainer`` gives what stock shap gives on the decomposed model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewriter import DeepExplainer, RewriteError, decompose
from tests.support.models import gallery
from tests.support.models.recurrent_models import OPTIONS, CellState, Packs, TimeFirst
from tests.support.stock import TOLERANCE, assert_same, check, stock

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured


@pytest.mark.parametrize("option", OPTIONS)
def test_equals_stock_shap(option: str) -> None:
    kind, options = OPTIONS[option]
    model = gallery.Classifier(kind, **options)
    for samples, references, steps in ((2, 5, 7), (3, 3, 1), (1, 1, 4)):
        check(model, torch.randn(samples, steps, 3), torch.randn(references, steps, 3))


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    size=st.integers(1, 5),
    rows=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    steps=st.integers(1, 6),
)
def test_equals_stock_shap_whatever_the_layer(
    kind: str, layers: int, bidirectional: bool, bias: bool, size: int, rows: tuple[int, int], steps: int
) -> None:
    torch.manual_seed(size)
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
    layer = getattr(nn, kind)(size, size + 1, batch_first=True, **options)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    model = Last().double()
    x, background = (torch.randn(n, steps, size, dtype=torch.float64) for n in rows)
    assert_same(
        DeepExplainer(model, background).shap_values(x), stock(model, background, x), TOLERANCE[torch.float64]
    )


@pytest.mark.parametrize(
    "make",
    [
        TimeFirst,
        Packs,
        lambda: gallery.Widened("GRU"),
        gallery.ReadsLength,
        gallery.ValueControlFlow,
        lambda: nn.Sequential(gallery.TwoNames(), nn.Flatten()),
    ],
    ids=["time first", "packed", "linear in front", "cell in a loop", "control flow", "called twice"],
)
def test_models_of_many_kinds(make: Callable[[], nn.Module]) -> None:
    model = make()
    features = 6 if isinstance(model, gallery.Widened) else 3
    check(model, torch.randn(2, 5, features), torch.randn(4, 5, features))


@pytest.mark.parametrize("gates", ["split", "fused"])
def test_every_level_of_decomposition(gates: Any) -> None:
    model = gallery.Classifier("LSTM", bidirectional=True).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    expected = stock(model, background, x)
    for level in (decompose(model, gates=gates), decompose(model, x, gates=gates)):
        assert_same(DeepExplainer(level, background).shap_values(x), expected, 1e-11)


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.GELU(), nn.Softplus(), nn.Sigmoid(),
    nn.Tanh(), nn.Softmax(-1),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_torch_activations(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3))
    check(model, torch.randn(3, 4), torch.randn(6, 4))


def pooled(dims: int, pool: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """A convolutional classifier of modules that stock shap has rules for."""
    convolution = getattr(nn, f"Conv{dims}d")(2, 3, 3, padding=1)
    norm = getattr(nn, f"BatchNorm{dims}d")(3)
    model = nn.Sequential(convolution, norm, nn.ReLU(), pool, nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(4, 2, *size))
    return model.double().eval()


SIZES = {1: (12,), 2: (8, 6), 3: (4, 4, 4)}


@pytest.mark.parametrize("dims", SIZES)
def test_pooling(dims: int) -> None:
    """On the model as it is stock shap lets windows that overlap overwrite each other; here they add up."""
    kind = getattr(nn, f"MaxPool{dims}d")
    apart = (kind(2), kind(3, ceil_mode=True), kind(2, padding=1))
    for pool in (*apart, kind(3, 1), kind(3, 2, padding=1)):
        model = pooled(dims, pool, SIZES[dims])
        x, background = (torch.randn(n, 2, *SIZES[dims], dtype=torch.float64) for n in (2, 5))
        with torch.no_grad():
            f = (model(x) - model(background).mean(0)).numpy()
        values = DeepExplainer(model, background).shap_values(x)
        assert_same(values, stock(model, background, x), 1e-11)
        assert np.abs(values.reshape(2, -1, 2).sum(1) - f).max() <= 1e-11
        theirs = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
        off = np.abs(theirs.reshape(2, -1, 2).sum(1) - f).max()
        assert off <= 1e-11 if pool in apart else off > 1e-3


class ThreeTimes(nn.Module):
    """Calls one activation three times, on what it goes on using."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.first, self.last, self.relu = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU(inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.relu(self.first(x))
        h = self.relu(self.first(h))
        return self.last(self.relu(h + x))


def test_activations_in_place() -> None:
    torch.manual_seed(1)
    x, background = torch.randn(2, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    model: nn.Module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).double()
    apart: nn.Module = nn.Sequential(model[0], nn.ReLU(), model[2])
    expected = shap.DeepExplainer(apart, background).shap_values(x)
    assert_same(DeepExplainer(model, background).shap_values(x), expected, 1e-11)
    model, apart = ThreeTimes(inplace=True).double(), ThreeTimes(inplace=False).double()
    apart.load_state_dict(model.state_dict())
    values = DeepExplainer(model, background).shap_values(x)
    np.testing.assert_array_equal(values, DeepExplainer(apart, background).shap_values(x))
    with torch.no_grad():
        f = (apart(x) - apart(background).mean(0)).numpy()
    assert np.abs(values.sum(1) - f).max() <= 1e-11


class Tied(nn.Module):
    """Two layers and a head with weights in common, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.LSTM(4, 4, batch_first=True) for _ in range(2))
        self.second.weight_ih_l0 = self.first.weight_ih_l0
        self.head = nn.Linear(4, 16)
        self.head.weight = self.first.get_parameter("weight_hh_l0")
        self.register_buffer("scale", torch.rand(4) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x * self.scale)[0])[0][:, -1])


def test_tied_weights_and_buffers() -> None:
    check(Tied(), torch.randn(2, 5, 4), torch.randn(3, 5, 4))


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_several_inputs(kind: str) -> None:
    sizes = (3, 2, 2) if kind == "LSTMCell" else (3, 2)
    x, background = ([torch.randn(n, size) for size in sizes] for n in (2, 5))
    check(CellState(kind), x, background)


class Initial(nn.Module):
    """Takes the initial state as an input, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, proj_size=2, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        out, (h_n, c_n) = self.lstm(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        return torch.cat([out[:, -1], out[:, 0], h_n[0], c_n[-1]], -1)


def test_initial_states_and_final_states() -> None:
    x, background = ([torch.randn(n, 5, 3), torch.randn(n, 2, 2), torch.randn(n, 2, 4)] for n in (2, 3))
    check(Initial(), x, background)


def test_interim_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), gallery.Widened("GRU")).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    rewritten = decompose(model)
    layer = rewritten.get_submodule("2.norm")
    expected = shap.DeepExplainer((rewritten, layer), background).shap_values(x, check_additivity=False)
    expected = expected[0] if isinstance(expected, list) else expected
    norm, rnn = (model.get_submodule(name) for name in ("2.norm", "2.rnn"))
    assert_same(DeepExplainer((model, norm), background).shap_values(x), expected, 1e-11)
    assert DeepExplainer((model, rnn), background).shap_values(x).shape == (2, 5, 3, 2)
    with pytest.raises(RewriteError, match="not a part of the model"):
        DeepExplainer((model, nn.Linear(1, 1)), background)


def test_references_of_its_own_for_each_sample() -> None:
    model = nn.Sequential(gallery.Classifier("GRU"), nn.Tanh()).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (3, 4))
    references = torch.randn(3, 2, 5, 3, dtype=torch.float64)
    explainer = DeepExplainer(model, background)
    values = explainer.shap_values(x, references=references)
    for row in range(3):
        assert_same(values[row : row + 1], stock(model, references[row], x[row : row + 1]), 1e-11)
    one = explainer.shap_values(x, references=references[:, :1])
    assert_same(one[1:2], stock(model, references[1, :1], x[1:2]), 1e-11)
    with pytest.raises(RewriteError, match="references of each sample"):
        explainer.shap_values(x, references=references[:2])


@pytest.mark.parametrize("max_memory", [1, 100_000])
def test_tiles_change_nothing(max_memory: int) -> None:
    model = nn.Sequential(gallery.Classifier("LSTM", bidirectional=True), nn.Linear(2, 20)).double()
    x, background = (torch.randn(n, 2, 3, dtype=torch.float64) for n in (5, 4))
    expected = DeepExplainer(model, background).shap_values(x)
    tight = DeepExplainer(model, background, max_memory=max_memory)
    assert_same(tight.shap_values(x), expected, 1e-12)
    references = torch.randn(5, 3, 2, 3, dtype=torch.float64)
    own = DeepExplainer(model, background).shap_values(x, references=references)
    assert_same(tight.shap_values(x, references=references), own, 1e-12)
