"""What is explained is what the model gives, and what rounding or a level would hide is told."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose


class Last(nn.Module):
    """A head on the last step of a layer, behind what a subclass does to it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self.gru(x)[0][:, -1]))
        return y


class WritesToData(Last):
    def between(self, h: Tensor) -> Tensor:
        h = h * 3
        h.data = h.data.clamp(-0.1, 0.1)
        return h


def test_outputs_that_are_not_the_models_are_an_error() -> None:
    model = WritesToData().double().eval()
    with pytest.raises(RewriteError, match=r"differs from what the model gives|without an exact rule"):
        DeepExplainer(model, torch.randn(6, 5, 3).double()).shap_values(torch.randn(3, 5, 3).double())


class Standardized(Last):
    """Divides by a deviation that is 0 for a background of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-8)
        return super().forward(x)


def test_what_float32_spoils_is_computed_in_float64() -> None:
    model = Standardized().eval()
    x, background = torch.randn(4, 6, 3), torch.zeros(1, 6, 3)
    values = DeepExplainer(model, background).shap_values(x)
    wide = Standardized().double().eval()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        change = (wide(x.double()) - wide(background.double())).numpy()
    # The order of magnitude of single values is 1e6: what float64 leaves of their sum.
    assert np.abs(values.sum((1, 2)) - change).max() < 1e-7


class TwoLevels(nn.Module):
    """A risk with a part that is cut, beside an output of a level of 1e9."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.risk, self.volume = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gru(x)[0][:, -1]
        risk = self.risk(h)
        return torch.cat([torch.sigmoid(3 * risk * risk.detach()), 1e9 * self.volume(h)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_another_outputs_level_hides_nothing(dtype: torch.dtype) -> None:
    model = TwoLevels().to(dtype).eval()
    explainer = DeepExplainer(model, torch.randn(9, 5, 3, dtype=dtype))
    with pytest.raises(RewriteError, match=r"output 0 .*detach"):
        explainer.shap_values(torch.randn(4, 5, 3, dtype=dtype))


class FinalState(nn.Module):
    """The usual head on the final state, with batch_first forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[1][0][-1])
        return y


def test_a_forgotten_batch_first_before_a_final_state() -> None:
    with pytest.raises(RewriteError, match=r"in lstm \(LSTM\).*batch_first=True"):
        DeepExplainer(FinalState(), torch.randn(8, 6, 3))


def test_one_row_of_a_model_that_squeezes() -> None:
    class Squeezed(Last):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1].squeeze()

    model = Squeezed().double().eval()
    explainer, x = DeepExplainer(model, torch.randn(6, 5, 3).double()), torch.randn(3, 5, 3).double()
    assert np.abs(explainer.shap_values(x)[:1] - explainer.shap_values(x[:1])).max() < 1e-13


class Settings:
    scale = 1.0


@dataclasses.dataclass
class Config:
    scale: float = 1.0


CONFIG, TABLE = Config(), np.ones(2)


class ByClass(Last):
    def between(self, h: Tensor) -> Tensor:
        return h * Settings.scale


class ByObject(Last):
    def between(self, h: Tensor) -> Tensor:
        return h * CONFIG.scale


class ByArray(Last):
    def between(self, h: Tensor) -> Tensor:
        return h * float(TABLE[0])


def _by_closure() -> tuple[type[Last], Callable[[float], None]]:
    scale = 1.0

    class ByClosure(Last):
        def between(self, h: Tensor) -> Tensor:
            return h * scale

    def change(value: float) -> None:
        nonlocal scale
        scale = value

    return ByClosure, change


def _changes() -> dict[str, tuple[type[Last], Callable[[float], Any]]]:
    return {
        "class": (ByClass, lambda value: setattr(Settings, "scale", value)),
        "object": (ByObject, lambda value: setattr(CONFIG, "scale", value)),
        "array": (ByArray, lambda value: TABLE.__setitem__(0, value)),
        "closure": _by_closure(),
    }


@pytest.mark.parametrize("place", ["class", "object", "array", "closure"])
def test_what_code_reads_elsewhere_may_change_later(place: str) -> None:
    kind, change = _changes()[place]
    model, x = kind().double().eval(), torch.randn(3, 5, 3).double()
    try:
        rewritten = decompose(model)
        rewritten(x)
        change(3.0)
        # The same sums, in another order.
        with torch.no_grad():
            assert float((rewritten(x) - model(x)).abs().max()) < 1e-13
    finally:
        change(1.0)


def test_a_weak_reference_to_what_is_gone() -> None:
    class Trainer:
        """Is gone after the fit."""

    model, x = Last().double().eval(), torch.randn(3, 5, 3).double()
    trainer = Trainer()
    model._trainer = weakref.proxy(trainer)
    del trainer
    gc.collect()
    with torch.no_grad():
        assert float((decompose(model)(x) - model(x)).abs().max()) < 1e-13


SEEN: list[int] = []
COUNTS = {"n": 0}
DRAWS = np.random.default_rng(0)


def _see(module: nn.Module, args: Any, output: Any) -> None:
    SEEN.append(1)
    COUNTS["n"] += 1
    DRAWS.random()


def test_what_a_hook_writes_outside_is_as_it_was() -> None:
    model = Last().double().eval()
    model.gru.register_forward_hook(_see)
    state = DRAWS.bit_generator.state
    rewritten = decompose(model, torch.randn(2, 5, 3).double())
    DeepExplainer(model, torch.randn(4, 5, 3).double()).shap_values(torch.randn(2, 5, 3).double())
    assert (SEEN, COUNTS, DRAWS.bit_generator.state) == ([], {"n": 0}, state)
    rewritten(torch.randn(2, 5, 3).double())
    assert COUNTS["n"] == 1


# Models that change while an explainer of them exists.
FACTOR = 2.0
BACKGROUND, X = torch.randn(5, 4, 3), torch.randn(2, 4, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 2)
        self.scale = 2.0
        self.weights = torch.tensor([1.0, 2.0, 3.0])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.g(x)[0][:, -1] * self.scale * self.weights)
        return y * FACTOR


class Counts(Model):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def trained(model: Model, _: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model.head.weight.mul_(2)


def written(model: Model, _: pytest.MonkeyPatch) -> None:
    model.head.weight.data.mul_(2)


def set_later(model: Model, _: pytest.MonkeyPatch) -> None:
    model.scale = 5.0


def tensor_set(model: Model, _: pytest.MonkeyPatch) -> None:
    model.weights = torch.ones(3)


def tensor_written(model: Model, _: pytest.MonkeyPatch) -> None:
    model.weights.mul_(3)


def hooked(model: Model, _: pytest.MonkeyPatch) -> None:
    model.head.register_forward_hook(lambda *args: args[2] * 3)


def hooked_before(model: Model, _: pytest.MonkeyPatch) -> None:
    model.head.register_forward_pre_hook(lambda _, args: (args[0] * 3,))


def other_forward(model: Model, _: pytest.MonkeyPatch) -> None:
    model.head.forward = lambda x: x[:, :2]  # type: ignore


def changed_outside(_: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", 5.0)


def called(model: Model, _: pytest.MonkeyPatch) -> None:
    model(X)


CHANGES = (
    trained,
    written,
    set_later,
    tensor_set,
    tensor_written,
    hooked,
    hooked_before,
    other_forward,
    changed_outside,
    called,
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [Model, Counts])
def test_what_changes_is_followed(
    kind: type[Model], change: Callable[[Model, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind().eval()
    explainer = DeepExplainer(model, BACKGROUND)
    explainer.shap_values(X)
    before = explainer.expected_value
    change(model, monkeypatch)
    values = torch.as_tensor(explainer.shap_values(X)).float()
    with torch.no_grad():
        expected = model(BACKGROUND).mean(0)
        outputs = model(X)
    # Sums of a few float32 numbers below 100.
    torch.testing.assert_close(torch.as_tensor(explainer.expected_value), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(values.sum((1, 2)), outputs - expected, rtol=0, atol=1e-5)
    # As an explainer that is made now has it.
    fresh = torch.as_tensor(DeepExplainer(model, BACKGROUND).shap_values(X)).float()
    torch.testing.assert_close(values, fresh, rtol=0, atol=1e-5)
    assert (abs(expected.numpy() - before).max() > 1e-3) == (change is not called)


def test_the_expected_value_alone_follows_too() -> None:
    model = Model().eval()
    explainer = DeepExplainer(model, BACKGROUND)
    model.scale = 5.0
    with torch.no_grad():
        expected = model(BACKGROUND).mean(0)
    torch.testing.assert_close(torch.as_tensor(explainer.expected_value), expected, rtol=0, atol=1e-5)
    model.head = nn.Linear(3, 2)
    with pytest.raises(RewriteError, match=r"head\.weight: replaced since"):
        explainer.expected_value  # noqa: B018 -- the access is what is tested


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_stands_by_itself(copied: Callable[[Any], Any]) -> None:
    model = Model().eval()
    explainer = DeepExplainer(model, BACKGROUND)
    values, own = explainer.shap_values(X), copied(explainer)
    model.scale = 5.0
    assert abs(own.shap_values(X) - values).max() < 1e-6
    assert abs(explainer.shap_values(X) - values).max() > 1e-3


def test_a_model_that_is_as_it_was_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counts().eval()
    explainer = DeepExplainer(model, BACKGROUND)
    target = explainer._target.model
    model.train().eval()
    model(X)
    explainer.shap_values(X)
    assert explainer._target.model is target
    model.scale = 5.0
    explainer.shap_values(X)
    assert explainer._target.model is not target
