"""``rewriter.DeepExplainer`` gives what stock shap gives on the decomposed model, and more."""

from __future__ import annotations

import itertools
import threading
import warnings
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
from rewriter._cell_sweeps import GRUSweep
from rewriter._linked import current
from tests import gallery
from tests.test_decompose import snapshot
from tests.test_shap import OPTIONS, CellState, Packs, TimeFirst

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}


def stock(model: nn.Module, background: Any, x: Any, **options: Any) -> Any:
    """Explain the decomposed model with stock shap."""
    explainer = shap.DeepExplainer(decompose(model), background)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return explainer.shap_values(x, check_additivity=False, **options)


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    """Assert equality relative to the largest value.

    In float32 relative to 1 at least: attributions are differences of outputs of that size, whose
    rounding both explainers inherit.
    """
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b, tolerance)
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    floor = 1.0 if tolerance >= TOLERANCE[torch.float32] else 0.0
    assert np.abs(got - expected).max() <= tolerance * max(floor, np.abs(expected).max())


def check(model: nn.Module, x: Any, background: Any) -> None:
    """Compare with stock shap in float32 and, with the tighter tolerance, in float64."""
    for dtype, tolerance in TOLERANCE.items():
        model = model.to(dtype).eval()
        a, b = ([p.to(dtype) for p in v] if isinstance(v, list) else v.to(dtype) for v in (x, background))
        explainer = DeepExplainer(model, b)
        np.testing.assert_allclose(
            explainer.expected_value, shap.DeepExplainer(decompose(model), b).expected_value, rtol=1e-6
        )
        assert_same(explainer.shap_values(a), stock(model, b, a), tolerance)


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


def test_convolution_and_pooling() -> None:
    for dims, size in ((1, (12,)), (2, (8, 6)), (3, (4, 4, 4))):
        model = nn.Sequential(
            getattr(nn, f"Conv{dims}d")(2, 3, 3, padding=1),
            getattr(nn, f"BatchNorm{dims}d")(3),
            nn.ReLU(),
            getattr(nn, f"MaxPool{dims}d")(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.LazyLinear(2),
        )
        x = torch.randn(2, 2, *size)
        model(x)
        check(model, x, torch.randn(5, 2, *size))


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


def test_ranked_outputs() -> None:
    model = nn.Sequential(gallery.Classifier(), nn.Linear(2, 5))
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    explainer = DeepExplainer(model, background)
    for order in ("max", "min", "max_abs"):
        values, ranks = explainer.shap_values(x, ranked_outputs=2, output_rank_order=order)
        expected, expected_ranks = stock(model, background, x, ranked_outputs=2, output_rank_order=order)
        assert torch.equal(ranks, expected_ranks)
        assert_same(values, expected, 1e-6)
    with pytest.raises(RewriteError, match="output_rank_order"):
        explainer.shap_values(x, ranked_outputs=1, output_rank_order="least")  # type: ignore[arg-type]


def test_interim_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), gallery.Widened("GRU")).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    rewritten = decompose(model)
    layer = rewritten.get_submodule("2.norm")
    expected = shap.DeepExplainer((rewritten, layer), background).shap_values(x, check_additivity=False)
    expected = expected[0] if isinstance(expected, list) else expected
    assert_same(DeepExplainer((model, model[2].norm), background).shap_values(x), expected, 1e-11)
    assert DeepExplainer((model, model[2].rnn), background).shap_values(x).shape == (2, 5, 3, 2)
    with pytest.raises(RewriteError, match="not a part of the model"):
        DeepExplainer((model, nn.Linear(1, 1)), background)


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


def test_threads_share_an_explainer() -> None:
    model = nn.Sequential(gallery.Classifier("GRU"), nn.Tanh())
    explainer = DeepExplainer(model, torch.randn(5, 6, 3))
    samples = [torch.randn(2 + k % 3, 6, 3) for k in range(8)]
    expected = [explainer.shap_values(x) for x in samples]
    got: dict[int, Any] = {}

    def explain(k: int) -> None:
        for _ in range(3):
            got[k] = explainer.shap_values(samples[k])

    threads = [threading.Thread(target=explain, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, values in enumerate(expected):
        np.testing.assert_array_equal(got[k], values)


def test_new_weights_are_seen() -> None:
    model = gallery.Classifier("GRU").double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert_same(explainer.shap_values(x), stock(model, background, x), 1e-11)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_never_touched(training: bool) -> None:
    model = nn.Sequential(gallery.Classifier(dropout=0.5, num_layers=2), nn.ReLU(), nn.Linear(2, 1))
    model.train(training)
    with torch.inference_mode():
        x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
        before = snapshot(model)
        DeepExplainer(model, background).shap_values(x)
    assert snapshot(model) == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_interrupt_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), gallery.Classifier("GRU"))
    explainer = DeepExplainer(model, torch.randn(3, 5, 3))
    x = torch.randn(2, 5, 3)
    expected, before = explainer.shap_values(x), snapshot(model)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(GRUSweep, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            explainer.shap_values(x)
    assert current() is None
    assert snapshot(model) == before
    np.testing.assert_array_equal(explainer.shap_values(x), expected)


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
    single = DeepExplainer(nn.Sequential(model, nn.Linear(3, 1)), background)(x)
    assert single.shape == (4, 15)
    assert single.base_values.shape == (4,)


def test_plots_take_it() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(6, 2, 3), output_names=["no", "yes"])
    explanation = explainer(torch.randn(8, 2, 3))[..., 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        for plot in (shap.plots.bar, shap.plots.beeswarm, shap.plots.heatmap):
            plot(explanation, show=False)
            pyplot.close("all")
        shap.plots.waterfall(explanation[0], show=False)
        pyplot.close("all")


def test_a_sample_equal_to_the_only_reference_gets_zeros() -> None:
    x = torch.randn(1, 5, 3)
    assert not DeepExplainer(gallery.Classifier(), x).shap_values(x).any()


def test_no_samples() -> None:
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3))
    assert explainer.shap_values(torch.empty(0, 5, 3)).shape == (0, 5, 3, 2)
    values, ranks = explainer.shap_values(torch.empty(0, 5, 3), ranked_outputs=1)
    assert values.shape == (0, 5, 3, 1)
    assert ranks.shape == (0, 1)
    assert explainer(torch.empty(0, 5, 3)).shape == (0, 15, 2)


def test_arrays_are_taken_for_tensors() -> None:
    model = nn.Linear(3, 2)
    x, background = np.random.default_rng(0).normal(size=(2, 2, 3))
    got = DeepExplainer(model, background).shap_values(x)
    expected = (x - background.mean(0))[..., None] * model.weight.detach().numpy().T
    np.testing.assert_allclose(got, expected, atol=1e-6)


BAD: dict[str, tuple[Any, str]] = {
    "NaN": (torch.full((2, 5, 3), torch.nan), "X, input 0: expected finite numbers"),
    "steps": (torch.randn(2, 6, 3), r"rows of shape \(5, 3\) like the background, got \(6, 3\)"),
    "dtype": (torch.randn(2, 5, 3).double(), "expected dtype torch.float32"),
    "list": ([torch.randn(2, 5, 3)], "expected one tensor like the background, got list"),
    "type": ("text", "expected a Tensor or an array, got str"),
    "number": (torch.tensor(1.0), "expected the batch in dimension 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    x, message = BAD[case]
    with pytest.raises(RewriteError, match=message):
        DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3)).shap_values(x)


def test_bad_background() -> None:
    for background, message in (
        (torch.empty(0, 5, 3), "at least one sample"),
        (torch.full((2, 5, 3), torch.inf), "background, input 0: expected finite"),
    ):
        with pytest.raises(RewriteError, match=message):
            DeepExplainer(gallery.Classifier(), background)


class Squares(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class SquaresIfLong(nn.Module):
    """The same in code that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = Squares()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.squares(x) if len(x) >= 0 else x


def test_additivity_error_names_the_operation() -> None:
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    for middle, name in ((Squares(), r"mul"), (SquaresIfLong(), r"1 \(SquaresIfLong\)")):
        model = nn.Sequential(gallery.Classifier(), middle, nn.Linear(2, 2))
        explainer = DeepExplainer(model, background)
        with pytest.raises(AssertionError, match=rf"first operation without an exact rule is .*{name}"):
            explainer.shap_values(x)
        assert explainer.shap_values(x, check_additivity=False).shape == (2, 5, 3, 2)


class Alternates(nn.Module):
    """Its operations depend on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Tanh(), nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) if bool(x.sum() > 0) else self.second(x)


def test_paths_must_be_the_same() -> None:
    explainer = DeepExplainer(Alternates(), -torch.ones(3, 2))
    with pytest.raises(RewriteError, match="another path"):
        explainer.shap_values(torch.ones(2, 2))


def test_long_memory_and_many_sizes_stay_additive() -> None:
    for kind, steps in itertools.product(("LSTM", "GRU", "RNN"), (1, 200)):
        model = gallery.Classifier(kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        x, background = torch.randn(2, steps, 3), torch.randn(3, steps, 3)
        explainer = DeepExplainer(model, background)
        values = explainer.shap_values(x)
        f = model(x).detach().numpy()
        gap = np.abs(values.sum((1, 2)) - (f - explainer.expected_value)).max()
        assert gap <= 1e-6 * max(1.0, np.abs(f).max())
