"""``rewriter.DeepExplainer`` has the arguments and results of shap's, and more shapes of outputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose
from tests.support.models import gallery
from tests.support.models.recurrent_models import CellState
from tests.support.stock import assert_same, stock

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured


class Everything(nn.Module):
    """Returns a tuple, a tensor per step, and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        out, h = self.gru(x)
        return out, {"mean": out.mean((1, 2)), "last": h[0]}


class Of(nn.Module):
    """One number of a model, as (B, 1)."""

    def __init__(self, model: nn.Module, pick: Any) -> None:
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pick(self.model(x))


def test_outputs_that_stock_shap_does_not_take() -> None:
    model = Everything().double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 4))
    explainer = DeepExplainer(model, background, output=0)
    values = explainer.shap_values(x)
    assert values.shape == (2, 5, 3, 5, 4)
    assert explainer.expected_value.shape == (5, 4)
    for t in (0, 3):
        expected = stock(Of(model, lambda o, t=t: o[0][:, t]), background, x)
        assert_same(values[..., t, :], expected, 1e-11)
        # Later inputs cannot matter.
        assert not values[:, t + 1 :, :, t].any()
    scalar = DeepExplainer(model, background, output=lambda o: o[1]["mean"])
    assert scalar.expected_value.shape == ()
    expected = stock(Of(model, lambda o: o[1]["mean"][:, None]), background, x)
    assert_same(scalar.shap_values(x), expected[..., 0], 1e-11)
    with pytest.raises(RewriteError, match="pass output="):
        DeepExplainer(model, background)


class Shaped(nn.Module):
    """Any number of inputs, any number of outputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, outputs)
        self.others = nn.ModuleList(nn.Linear(2 + k, 4) for k in range(inputs - 1))

    def forward(self, x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        h = self.gru(x)[0][:, -1]
        for layer, each in zip(self.others, more, strict=True):
            h = h + layer(each)
        return self.head(h)


@pytest.mark.parametrize("ranked", [None, 1, 2, 9])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("inputs", ["one", "list of one", "two", "three"])
def test_shapes_are_those_of_stock_shap(inputs: str, outputs: int, ranked: int | None) -> None:
    count = {"one": 1, "list of one": 1, "two": 2, "three": 3}[inputs]
    model = Shaped(count, outputs)

    def data(rows: int) -> Any:
        parts = [torch.randn(rows, 5, 3), *(torch.randn(rows, 2 + k) for k in range(count - 1))]
        return parts[0] if inputs == "one" else parts

    background = data(4)
    explainer, theirs = DeepExplainer(model, background), shap.DeepExplainer(decompose(model), background)
    assert explainer.expected_value.shape == theirs.expected_value.shape
    assert explainer.expected_value.dtype == theirs.expected_value.dtype
    for rows in (1, 2):
        for order in ("max", "min", "max_abs"):
            x = data(rows)
            # All arguments by position. Stock shap checks ranked outputs against the wrong ones.
            got, expected = (each.shap_values(x, ranked, order, False) for each in (explainer, theirs))
            if ranked is not None:
                assert isinstance(got, tuple)
                assert torch.equal(got[1], expected[1])
                assert got[1].dtype == expected[1].dtype
                got, expected = got[0], expected[0]
            assert type(got) is type(expected)
            assert_same(got, expected, 1e-6)


def test_constructor_is_that_of_stock_shap() -> None:
    x, background = torch.randn(2, 5, 3), torch.randn(4, 5, 3)
    model = gallery.Classifier()
    ours, theirs = (
        inspect.signature(kind.__init__).parameters for kind in (DeepExplainer, shap.DeepExplainer)
    )
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == each.default for name, each in theirs.items())
    expected = DeepExplainer(model, background).shap_values(x)
    np.testing.assert_array_equal(DeepExplainer(model, background, None, None).shap_values(x), expected)
    options: dict[str, Any]
    for options in ({"session": object()}, {"learning_phase_flags": []}):
        with pytest.raises(RewriteError, match=rf"{next(iter(options))}: expected None.*TensorFlow 1"):
            DeepExplainer(model, background, **options)


@pytest.mark.parametrize("ranked", [0, -1, 1.5, "one"])
def test_bad_ranks(ranked: Any) -> None:
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3))
    with pytest.raises(RewriteError, match="ranked_outputs: expected None or a positive integer"):
        explainer.shap_values(torch.randn(2, 5, 3), ranked)
    with pytest.raises(RewriteError, match="output_rank_order: expected 'max'"):
        explainer.shap_values(torch.randn(2, 5, 3), 1, "least")  # type: ignore[arg-type]


def test_explanation_for_plots() -> None:
    model = nn.Sequential(gallery.Classifier(), nn.Linear(2, 3))
    x, background = torch.randn(4, 5, 3), torch.randn(6, 5, 3)
    explainer = DeepExplainer(model, background, feature_names=["a", "b", "c"], output_names=["p", "q", "r"])
    explanation = explainer(x)
    assert explanation.shape == (4, 15, 3)
    assert explanation.feature_names[:4] == ["t0 a", "t0 b", "t0 c", "t1 a"]
    assert explanation.output_names == ["p", "q", "r"]
    values = explainer.shap_values(x)
    np.testing.assert_array_equal(explanation[..., 1].values, values[..., 1].reshape(4, 15))
    f = model(x).detach().numpy()
    np.testing.assert_allclose(explanation.values.sum(1) + explanation.base_values, f, atol=1e-6)
    parts = list(explainer.stream(x.split(3)))
    np.testing.assert_allclose(np.concatenate([part.values for part in parts]), explanation.values, atol=1e-8)
    each = [f"step {t} {name}" for t in range(5) for name in "abc"]
    single = DeepExplainer(nn.Sequential(model, nn.Linear(3, 1)), background, feature_names=each)(x)
    assert single.shape == (4, 15)
    assert single.base_values.shape == (4,)
    assert single.feature_names == each


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 4, 3), (7,)])
def test_explanation_has_the_shapes_of_stock_shap(shape: tuple[int, ...], outputs: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, outputs)).double()
    x, background = (torch.randn(n, *shape, dtype=torch.float64) for n in (2, 4))
    model(x)
    ours, theirs = DeepExplainer(model, background)(x), shap.DeepExplainer(decompose(model), background)(x)
    # Stock shap keeps a last dimension of size 1 for one output.
    assert_same(ours.values.reshape(theirs.values.shape), theirs.values, 1e-11)
    assert ours.shape == (2, *shape, outputs)[: len(shape) + 1 + (outputs > 1)]
    np.testing.assert_array_equal(ours.data, theirs.data.numpy())
    each = ours[..., 2] if outputs > 1 else ours
    f = model(x).detach().numpy()[:, -1]
    np.testing.assert_allclose(each.values.reshape(2, -1).sum(1) + each.base_values, f, rtol=0, atol=1e-11)


def test_names_and_data_of_several_inputs() -> None:
    x, background = ([torch.randn(n, 3), torch.randn(n, 2), torch.randn(n, 2)] for n in (3, 4))
    explainer = DeepExplainer(CellState("LSTMCell"), background)
    explanation = explainer(x)
    assert explanation.shape == (3, 7, 4)
    assert explanation.feature_names == [f"input{k} x{i}" for k, n in enumerate((3, 2, 2)) for i in range(n)]
    np.testing.assert_array_equal(explanation.data, torch.cat(x, 1).numpy())
    values = explainer.shap_values(x)
    np.testing.assert_array_equal(explanation.values, np.concatenate(values, 1))
    np.testing.assert_allclose(explanation.base_values, np.tile(explainer.expected_value, (3, 1)), rtol=1e-6)


def test_data_of_an_inner_module_are_what_it_gets() -> None:
    model = nn.Sequential(nn.Embedding(10, 3), gallery.Classifier("GRU")).eval()
    tokens, background = torch.randint(10, (4, 5)), torch.randint(10, (6, 5))
    explainer = DeepExplainer((model, model.get_submodule("1.rnn")), background)
    explanation = explainer(tokens)
    assert explanation.shape == (4, 5, 3, 2)
    with torch.no_grad():
        np.testing.assert_array_equal(explanation.data, model[0](tokens).numpy())
        f = (model(tokens) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(explanation.values.sum((1, 2)), f, atol=1e-6)


def explain_classes() -> Any:
    features, outputs = ["a", "b", "c"], ["no", "yes"]
    explainer = DeepExplainer(
        gallery.Classifier(), torch.randn(6, 2, 3), feature_names=features, output_names=outputs
    )
    return explainer(torch.randn(8, 2, 3))


def explain_states() -> Any:
    background, x = ([torch.randn(n, 3), torch.randn(n, 2), torch.randn(n, 2)] for n in (6, 8))
    return DeepExplainer(CellState("LSTMCell"), background)(x)


def explain_everything(output: Any) -> Any:
    explainer = DeepExplainer(
        Everything(), torch.randn(6, 2, 3), output=output, feature_names=["a", "b", "c"]
    )
    return explainer(torch.randn(8, 2, 3))


# How to get one output of an explanation.
PLOTTED: dict[str, Callable[[], Any]] = {
    "by number": lambda: explain_classes()[..., 1],
    "by name": lambda: explain_classes()[:, :, "yes"],
    "several inputs": lambda: explain_states()[..., 0],
    "(B, T, K)": lambda: explain_everything(0)[..., 7],
    "(B,)": lambda: explain_everything(lambda o: o[1]["mean"]),
}


@pytest.mark.parametrize("case", PLOTTED)
def test_plots_take_it(case: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    explanation = PLOTTED[case]()
    features = 7 if case == "several inputs" else 6
    assert explanation.shape == (8, features)
    assert len(explanation.feature_names) == features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for plot in (shap.plots.bar, shap.plots.beeswarm, shap.plots.heatmap):
            plot(explanation, show=False)
            labels = [label.get_text() for label in pyplot.gcf().axes[0].get_yticklabels()]
            assert any(name in label for name in explanation.feature_names for label in labels)
            pyplot.close("all")
        shap.plots.waterfall(explanation[0], show=False)
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore")  # theirs
def test_plots_take_sequences_images_and_texts_in_their_shapes() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    steps = DeepExplainer(gallery.Classifier(), torch.randn(6, 5, 3))(torch.randn(8, 5, 3))[..., 1]
    assert steps.shape == (8, 5, 3)
    for plot in (shap.plots.bar, shap.plots.beeswarm, shap.plots.violin):
        # One step, and channels and steps summed.
        for part in (steps[:, -1], steps.sum(1), steps.sum(2)):
            plot(part, show=False)
            pyplot.close("all")
    shap.plots.waterfall(steps[0, -1], show=False)
    images = torch.rand(2, 6, 6, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    names = ["cat", "dog"]
    shap.plots.image(DeepExplainer(model, torch.rand(4, 6, 6, 3), output_names=names)(images), show=False)
    assert {"cat", "dog"} <= {each.get_title() for each in pyplot.gcf().axes}
    pyplot.close("all")
    reader = nn.Sequential(nn.Embedding(9, 3), gallery.Classifier("GRU")).eval()
    told = DeepExplainer(reader, torch.randint(9, (4, 5)), output_names=names)(torch.randint(9, (2, 5)))
    assert told.shape == (2, 5, 2)
    told.data = np.array([[f"word{token} " for token in row] for row in told.data])
    assert "word" in shap.plots.text(told[0], display=False)
    assert "word" in shap.plots.text(told[..., 1], display=False)


def test_no_samples() -> None:
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3))
    assert explainer.shap_values(torch.empty(0, 5, 3)).shape == (0, 5, 3, 2)
    values, ranks = explainer.shap_values(torch.empty(0, 5, 3), ranked_outputs=1)
    assert values.shape == (0, 5, 3, 1)
    assert ranks.shape == (0, 1)
    assert explainer(torch.empty(0, 5, 3)).shape == (0, 5, 3, 2)


class OverTheBatch(nn.Module):
    """Divides by a maximum over all that it gets, other rows included."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y / y.abs().max()


def test_an_operation_over_the_batch_is_named() -> None:
    for rows in (5, 1):
        with pytest.raises(RewriteError, match=r"influence each other in the model itself \(OverTheBatch\)"):
            DeepExplainer(OverTheBatch(), torch.randn(rows, 3))


def test_weights_of_one_number_in_a_larger_tensor() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
    # Contiguous, as one number is with any strides; no view as bytes takes them.
    model[0].weight = nn.Parameter(torch.ones(2, 3)[1:, 1:2].t())
    assert model[0].weight.stride()[-1] == 3
    x, background = torch.ones(1, 1), torch.zeros(1, 1)
    explainer = DeepExplainer(model, background)
    for factor in (1.0, 2.0):
        with torch.no_grad():
            model[0].weight.fill_(factor)
        np.testing.assert_allclose(explainer.shap_values(x).item(), np.tanh(factor), rtol=1e-6)
