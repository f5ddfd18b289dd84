"""An explanation by ``rewriter.DeepExplainer`` leaves nothing behind, and bears company."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rewriter import DeepExplainer, RewriteError
from rewriter.engine import attribution
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.tape import current
from rewriter.explainer import result
from tests.support.models import gallery
from tests.support.stock import assert_same, stock
from tests.support.watching import snapshot, tapes_noted


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
    explainer = DeepExplainer(model, torch.randn(3, 5, 3), compiled=False)
    x = torch.randn(2, 5, 3)
    expected, before = explainer.shap_values(x), snapshot(model)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DerivedSweep, "_turn_back", stop)
        with pytest.raises(KeyboardInterrupt):
            explainer.shap_values(x)
    assert current() is None
    assert snapshot(model) == before
    np.testing.assert_array_equal(explainer.shap_values(x), expected)


def test_others_may_use_the_model_meanwhile() -> None:
    """Eight threads explain while one runs the model, collects gradients and switches modes."""
    model = nn.Sequential(gallery.Classifier("GRU", dropout=0.5, num_layers=2), nn.Tanh()).eval()
    x, background = torch.randn(3, 6, 3), torch.randn(5, 6, 3)
    explainer = DeepExplainer(model, background)
    expected = explainer.shap_values(x)
    done, failures = threading.Event(), []

    def train() -> None:
        while not done.is_set():
            model.train()
            model(x).sum().backward()
            model.zero_grad()
            model.eval()
            model(x)

    def explain() -> None:
        for _ in range(5):
            got = explainer.shap_values(x)
            if not np.array_equal(got, expected):
                failures.append(np.abs(got - expected).max())

    trainer, threads = threading.Thread(target=train), [threading.Thread(target=explain) for _ in range(8)]
    for thread in (trainer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    trainer.join()
    assert not failures


def test_weights_must_stay_what_they_are_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(gallery.Classifier("GRU"), nn.Tanh())
    explainer = DeepExplainer(model, torch.randn(3, 5, 3), compiled=False)
    plain, writes = DerivedSweep._turn_back, iter([True])

    def step(*args: Any) -> None:
        if next(writes, False):
            with torch.no_grad():
                model[0].rnn.weight_hh_l0.add_(1)
        plain(*args)

    monkeypatch.setattr(DerivedSweep, "_turn_back", step)
    x = torch.randn(2, 5, 3)
    for check_additivity in (False, True):
        writes = iter([True])
        with pytest.raises(RewriteError, match="were written to while it was explained"):
            explainer.shap_values(x, check_additivity=check_additivity)
    f = model(x).detach().numpy()
    values = explainer.shap_values(x)
    new = DeepExplainer(model, explainer._data[0], compiled=False)
    np.testing.assert_array_equal(values, new.shap_values(x))
    assert np.abs(values.sum((1, 2)) - (f - new.expected_value)).max() <= 1e-6


def test_dropout_does_not_act() -> None:
    model = gallery.Classifier("LSTM", dropout=0.5, num_layers=2).double()
    x, background = torch.randn(2, 5, 3).double(), torch.randn(3, 5, 3).double()
    expected = stock(copy.deepcopy(model).eval(), background, x)
    model.train()
    assert_same(DeepExplainer(model, background).shap_values(x), expected, 1e-11)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_explainers_travel(again: Any) -> None:
    model, x = gallery.Classifier("GRU"), torch.randn(2, 5, 3)
    explainer = DeepExplainer(model, torch.randn(3, 5, 3), feature_names=["a", "b", "c"])
    expected = explainer.shap_values(x)
    travelled = again(explainer)
    with torch.no_grad():
        model.head.weight.zero_()
    np.testing.assert_array_equal(travelled.shap_values(x), expected)
    assert travelled(x).feature_names[0] == "t0 a"


def test_work_that_takes_long_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar comes after seconds, counts pairs and is gone afterwards."""
    shown: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            shown.append(options | {"pairs": 0})

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            shown[-1]["closed"] = True

        def update(self, pairs: int) -> None:
            shown[-1]["pairs"] += pairs

    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    model, x, background = gallery.Classifier("GRU"), torch.randn(20, 5, 3), torch.randn(7, 5, 3)
    DeepExplainer(model, background, max_memory=10_000).shap_values(x)
    assert [(bar["total"], bar["pairs"], bar["closed"]) for bar in shown] == [(140, 140, True)]
    assert shown[0]["delay"] == result._LONG > 1
    DeepExplainer(model, background, progress=False).shap_values(x)
    assert len(shown) == 1


class WritesToItsInput(nn.Module):
    """Has control flow, so that it stays the user's code, and writes to its input."""

    def __init__(self, model: nn.Module, *, write: bool = True) -> None:
        super().__init__()
        self.model, self.write = model, write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.write or x.abs().max() > 1e9:
            return self.model(x + 1)
        x += 1
        return self.model(x)


def test_what_the_user_gives_is_never_written_to() -> None:
    model = gallery.Classifier("GRU").double()
    x, background = torch.randn(2, 5, 3).double(), torch.randn(4, 5, 3).double()
    references = background.expand(2, 4, 5, 3).clone()
    before = [each.clone() for each in (x, background, references)]
    expected = stock(WritesToItsInput(model, write=False), background, x)
    explainer = DeepExplainer(WritesToItsInput(model), background)
    for _ in range(2):
        assert_same(explainer.shap_values(x), expected, 1e-11)
        assert_same(explainer.shap_values(x, references=references), expected, 1e-11)
    assert all(map(torch.equal, (x, background, references), before))


def _load(model: nn.Module) -> None:
    model.load_state_dict(gallery.Classifier("GRU").double().state_dict(), assign=True)


def _cast(model: nn.Module) -> None:
    model.half().double()


def _head(model: nn.Module) -> None:
    model.head = nn.Linear(4, 2).double()


@pytest.mark.parametrize("replace", [_load, _cast, _head])
def test_weights_that_were_replaced_are_noticed(replace: Any) -> None:
    model = gallery.Classifier("GRU").double()
    x, background = torch.randn(2, 5, 3).double(), torch.randn(3, 5, 3).double()
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x)
    replace(model)
    with pytest.raises(RewriteError, match=r"replaced since the explainer was made.*make a new explainer"):
        explainer.shap_values(x)
    assert_same(DeepExplainer(model, background).shap_values(x), stock(model, background, x), 1e-11)


def test_weights_that_moved_and_came_back_are_the_same() -> None:
    model, x = gallery.Classifier("GRU"), torch.randn(2, 5, 3)
    explainer = DeepExplainer(model, torch.randn(3, 5, 3))
    expected = explainer.shap_values(x)
    model.double().float()
    np.testing.assert_array_equal(explainer.shap_values(x), expected)


def test_weights_written_to_behind_the_back_of_autograd_are_seen() -> None:
    model = nn.Sequential(gallery.Classifier("GRU"), nn.Tanh()).double()
    x, background = torch.randn(2, 5, 3).double(), torch.randn(3, 5, 3).double()
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x)
    for parameter in model.parameters():
        parameter.data.neg_()
    assert_same(explainer.shap_values(x), stock(model, background, x), 1e-11)


def test_a_copy_remembers_nothing_of_other_weights() -> None:
    # Weights of copies begin with version 0, whatever happened to them before.
    model = copy.deepcopy(nn.Sequential(gallery.Classifier("GRU"), nn.Tanh()).double())
    x, background = torch.randn(2, 5, 3).double(), torch.randn(3, 5, 3).double()
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    expected = stock(model, background, x)
    assert_same(copy.deepcopy(explainer).shap_values(x), expected, 1e-11)
    assert_same(pickle.loads(pickle.dumps(explainer)).shap_values(x), expected, 1e-11)


class KeepsState(gallery.Classifier):
    """Begins where the last batch of that size ended, and counts its rows."""

    rows: torch.Tensor

    def __init__(self) -> None:
        super().__init__("GRU")
        self.state: torch.Tensor | None = None
        self.register_buffer("rows", torch.zeros(()))
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        begin = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        out, self.state = self.rnn(x, begin)
        self.rows += len(x)
        self.sizes.append(len(x))
        return self.head(torch.tanh(out[:, -1]))


def test_state_between_calls_neither_stays_nor_counts() -> None:
    model = KeepsState().double()
    x, background = torch.randn(3, 5, 3).double(), torch.randn(3, 5, 3).double()
    before = snapshot(model)
    explainer = DeepExplainer(model, background)
    values = [explainer.shap_values(x) for _ in range(3)]
    threads = [threading.Thread(target=lambda: values.append(explainer.shap_values(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert snapshot(model) == before
    assert (model.state, model.rows.item(), model.sizes) == (None, 0, [])
    for each in values:
        np.testing.assert_array_equal(each, values[0])
    expected = copy.deepcopy(model)(x) - copy.deepcopy(model)(background).mean(0)
    assert len(values) == 7
    assert np.abs(values[0].sum((1, 2)) - expected.detach().numpy()).max() < 1e-13


@pytest.mark.parametrize("own", [False, True])
def test_what_references_left_is_gone_before_others_run(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise twice the memory that was planned with would be needed."""
    x, background = torch.randn(20, 5, 3), torch.randn(30, 5, 3)
    record, tapes = tapes_noted(attribution.record)
    explainer = DeepExplainer(gallery.Classifier(), background, max_memory=20_000)
    expected = explainer.shap_values(x)
    monkeypatch.setattr(attribution, "record", record)
    references = background.expand(20, *background.shape) if own else None
    assert_same(explainer.shap_values(x, references=references), expected, 1e-6)
    assert len(tapes) > 2
