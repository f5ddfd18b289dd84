"""What decompose returns is held against the original's own code, which takes its place where they differ."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from rewriter import DeepExplainer, RewriteError, decompose, unroll

SCALE = 2.0
CONFIG = {"scale": {"deep": 2.0}}
LOG: list[int] = []


class Base(nn.Module):
    table = (1.0, 2.0)

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.GRU(3, 3, batch_first=True)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.g(x)[0]
        return y


class ReadsGlobal(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * SCALE


class ReadsDictionary(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * scale_of_the_file()


def scale_of_the_file() -> float:
    return CONFIG["scale"]["deep"]


class ReadsClass(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.table[1]


class Logs(Base):
    def forward(self, x: Tensor) -> Tensor:
        LOG.append(1)
        return super().forward(x) * len(LOG)


class WithDefault(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(x, "lengths", 3.0)


def changed_global(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", 5.0)


def changed_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIG["scale"], "deep", 5.0)


def changed_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadsClass, "table", (1.0, 5.0))


CHANGES: dict[type[Base], Callable[[pytest.MonkeyPatch], None]] = {
    ReadsGlobal: changed_global,
    ReadsDictionary: changed_dictionary,
    ReadsClass: changed_class,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_the_code_reads_outside_of_the_model_may_change(
    kind: type[Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = kind().eval(), torch.randn(2, 4, 3)
    rewritten, explainer = decompose(model), DeepExplainer(model, torch.randn(5, 4, 3))
    assert isinstance(rewritten, fx.GraphModule)
    torch.testing.assert_close(rewritten(x), model(x), rtol=0, atol=1e-6)
    before = explainer.shap_values(x)
    CHANGES[kind](monkeypatch)
    torch.testing.assert_close(rewritten(x), model(x), rtol=0, atol=1e-6)
    assert "computes something else" in rewritten.report.islands[""]
    # The output is that of before times a number.
    found = explainer.shap_values(x, check_additivity=False)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(before) * 2.5, rtol=0, atol=1e-6)


class WithState(Base):
    """Tensors of its own, layers that were written out, and a number that is read outside."""

    def __init__(self) -> None:
        super().__init__()
        # What no code uses is no part of a graph.
        del self.norm
        self.layer_norm, self.act, self.head = nn.LayerNorm(3), nn.ReLU(inplace=True), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.layer_norm(self.g(x)[0]))) * self.scale * SCALE + self.shift
        return y


def test_a_graph_that_becomes_code_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model and in a model that it is a part of; what is saved before is loaded afterwards."""
    model, x = WithState().eval(), torch.randn(2, 4, 3)
    rewritten = decompose(model)
    rewritten(x)
    whole = nn.Sequential(rewritten)
    saved = {name: 2 * value for name, value in whole.state_dict().items()}
    parameters = [name for name, _ in rewritten.named_parameters()]
    modules = {name for name, _ in rewritten.named_modules()}
    doubled = copy.deepcopy(model)
    doubled.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    monkeypatch.setitem(globals(), "SCALE", 2.5)
    rewritten(x)
    assert "computes something else" in rewritten.report.islands[""]
    for each in (rewritten, copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        assert modules <= {name for name, _ in each.named_modules()}
        assert [name for name, _ in each.named_parameters()] == parameters
        whole = nn.Sequential(each)
        assert list(whole.state_dict()) == list(saved)
        whole.load_state_dict(saved)
        torch.testing.assert_close(each(x), doubled(x), rtol=0, atol=1e-5)
        wide = copy.deepcopy(each).double()(x.double())
        torch.testing.assert_close(wide, copy.deepcopy(doubled).double()(x.double()), rtol=0, atol=1e-9)


def test_a_log_of_the_file_stays_as_it_is() -> None:
    model, x = Logs().eval(), torch.randn(2, 4, 3)
    LOG.clear()
    rewritten, _ = decompose(model), decompose(model, x)
    DeepExplainer(model, torch.randn(5, 4, 3)).shap_values(x, check_additivity=False)
    assert LOG == []
    expected = [model(x) for _ in range(3)]
    LOG.clear()
    for each in expected:
        torch.testing.assert_close(rewritten(x), each, rtol=0, atol=1e-6)


def test_a_graph_that_fails_becomes_code() -> None:
    model, x = WithDefault().eval(), torch.randn(2, 4, 3)
    for rewritten in (decompose(model), decompose(model, x), decompose(model, gates="split")):
        torch.testing.assert_close(rewritten(x), model(x), rtol=0, atol=1e-6)
        assert "has no attribute 'lengths'" in rewritten.report.islands[""]
        again = copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))
        for each in again:
            torch.testing.assert_close(each(x), model(x), rtol=0, atol=1e-6)


class ByType(Base):
    """Takes another way for a class of its own, which a rewritten layer is."""

    def forward(self, x: Tensor) -> Tensor:
        y: Any = self.g(x)
        return y[0] if type(self.g) is nn.GRU else y[0] * 2


class ByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.g(x)[0]
        return y if self.g.__class__.__name__ == "GRU" else y.mean(1)


@pytest.mark.parametrize("kind", [ByType, ByName])
def test_what_cannot_be_the_same_is_an_error_with_a_place(kind: type[Base]) -> None:
    model, x, background = kind().eval(), torch.randn(2, 4, 3), torch.randn(5, 4, 3)
    place = rf"test_proof\.py:{kind.forward.__code__.co_firstlineno}"
    rewritten = decompose(model)
    with pytest.raises(RewriteError, match="output"):
        rewritten(x)
    with pytest.raises(
        RewriteError, match=f"computes something else than the original: .*{place}|output: expected"
    ):
        decompose(model, x)
    with pytest.raises(RewriteError, match="computes something else than the original"):
        DeepExplainer(model, background, output=lambda y: y.flatten(1))
    # The switch, for those who know better.
    assert decompose(model, prove=False)(x).shape is not None


def test_the_report_says_what_was_proven() -> None:
    model, x = Base().eval(), torch.randn(2, 4, 3)
    rewritten: Any = decompose(model)
    assert not rewritten.report.proven
    rewritten(x)
    rewritten(x)
    rewritten(torch.randn(3, 4, 3))
    assert rewritten.report.proven.runs == [
        "Tensor float32 (2, 4, 3) on cpu",
        "Tensor float32 (3, 4, 3) on cpu",
    ]
    assert rewritten.report.proven.largest < 1e-5
    assert "equal to the original" in str(rewritten.report)
    flat: Any = decompose(model, x).report.proven
    assert flat.runs == ["the example inputs", "the same again", "more rows in training mode"]
    assert not decompose(model, prove=False).report.proven


class Trains(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.g(x)[0].transpose(1, 2))
        return y


def test_training_changes_weights_not_the_verdict() -> None:
    model, x = Trains(), torch.randn(4, 5, 3)
    for make in (decompose, partial(decompose, gates="split")):
        rewritten: Any = make(model)
        optimizer = torch.optim.SGD(rewritten.parameters(), 0.1)
        for rows in (4, 3):
            optimizer.zero_grad()
            rewritten(x[:rows]).sum().backward()
            optimizer.step()
        rewritten.eval()
        rewritten(x)
        assert len(rewritten.report.proven.runs) == 3
        assert not rewritten.report.islands
    # A copy has weights of its own.
    copied = copy.deepcopy(decompose(model))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(3)
    copied(x)
    assert not copied.report.islands


def test_what_a_user_changes_in_the_result_is_the_users() -> None:
    model, x = nn.Sequential(Base(), nn.Linear(3, 2)).eval(), torch.randn(2, 4, 3)
    rewritten = decompose(model)
    rewritten.get_submodule("1").register_forward_hook(lambda *args: args[2] * 2)
    torch.testing.assert_close(rewritten(x), model(x) * 2, rtol=0, atol=1e-6)
    other = decompose(model)
    other.add_module("1", nn.Identity())
    assert other(x).shape == (2, 4, 3)
    assert not other.report.islands


def test_a_proof_leaves_no_trace() -> None:
    model, x = Trains(), torch.randn(4, 5, 3)
    norm: Any = model.norm
    rewritten = decompose(model)
    mean, state = norm.running_mean.clone(), torch.get_rng_state()
    counted = int(norm.num_batches_tracked)
    expected = copy.deepcopy(model)(x)
    torch.set_rng_state(state)
    got = rewritten(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert int(norm.num_batches_tracked) == counted + 1
    assert not torch.equal(norm.running_mean, mean)


def test_transforms_and_exports_of_a_result_are_not_proven_again() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).eval(), torch.randn(2, 3)
    rewritten = decompose(model)
    torch.testing.assert_close(torch.func.vmap(rewritten)(x), model(x), rtol=0, atol=1e-6)
    program = torch.export.export(rewritten, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)
    assert not rewritten.report.proven
    assert unroll(decompose(Base()), length=4)(torch.randn(2, 4, 3)).shape == (2, 4, 3)
