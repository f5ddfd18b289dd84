"""An explainer explains the model as it is: what is trained, set or hooked later, too."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError

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
