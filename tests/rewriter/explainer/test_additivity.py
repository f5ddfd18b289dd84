"""Attributions sum to what they explain, or an error says where they stop doing so."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rewriter import DeepExplainer, RewriteError
from tests.support.models import gallery


class Unknown(nn.Module):
    """An operation without a rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.renorm(2, 0, 0.1)


class UnknownIfLong(nn.Module):
    """The same in code that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = Unknown()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unknown(x) if len(x) >= 0 else x


def test_additivity_error_names_the_operation() -> None:
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    line = Unknown.forward.__code__.co_firstlineno + 1
    for middle, name in ((Unknown(), "1_renorm"), (UnknownIfLong(), r"1\.unknown")):
        model = nn.Sequential(gallery.Classifier(), middle, nn.Linear(2, 2))
        explainer = DeepExplainer(model, background)
        message = rf"{name} \(renorm, test_additivity\.py:{line}\): has no rule"
        with pytest.raises(AssertionError, match=f"first operation without an exact rule is .*{message}"):
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


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).renorm_(2, 0, 0.1))


def test_error_names_an_operation_that_writes_in_place() -> None:
    explainer = DeepExplainer(InPlace(), torch.rand(3, 3) / 9)
    with pytest.raises(AssertionError, match=r"first operation without an exact rule is .*renorm_"):
        explainer.shap_values(torch.rand(2, 3) / 9)


def test_tolerance() -> None:
    """A float is one; everything else says whether to check, as in shap."""
    explainer, x = DeepExplainer(Unknown(), torch.rand(3, 2)), torch.rand(4, 2)
    check: Any
    for check in (True, 1, 1e-4, np.True_):
        with pytest.raises(AssertionError, match="tolerance 1e-04"):
            explainer.shap_values(x, check_additivity=check)
    for check in (False, 0, None, np.False_, 10.0):
        assert explainer.shap_values(x, check_additivity=check).shape == (4, 2, 2)
    with pytest.raises(RewriteError, match="check_additivity: expected a bool or a tolerance, got 'no'"):
        explainer.shap_values(x, check_additivity="no")  # type: ignore[arg-type]


class AtALevel(nn.Module):
    """Cancels large numbers inside, and gives a small change of a high level; may leave something out."""

    def __init__(self, inside: float, missing: float) -> None:
        super().__init__()
        self.classifier = gallery.Classifier("GRU")
        self.inside, self.missing = 1.1 * inside, missing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.classifier(x)
        if self.inside:
            y = ((y + self.inside) ** 2 - self.inside**2) / (2 * self.inside)
        return 39000 + 1e-3 * (y + self.missing * y.detach())


@pytest.mark.parametrize("inside", [0.0, 1e6, 1e9])
def test_what_rounding_leaves_in_float64_is_told_from_a_missing_rule(inside: float) -> None:
    x, background = torch.randn(3, 5, 3).double(), torch.randn(4, 5, 3).double()
    # Squares of 1e18 leave roundings of 1e-7 of what is missed then.
    for missing in (0.0, 1e-2):
        model = AtALevel(inside, missing).double().eval()
        explainer = DeepExplainer(model, background)
        if missing:
            with pytest.raises(AssertionError, match=r"without an exact rule is .*detach"):
                explainer.shap_values(x)
        else:
            values = explainer.shap_values(x)
            change = model(x).detach().numpy() - explainer.expected_value
            assert np.abs(values.sum((1, 2)) - change).max() < 1e-8


def test_a_missing_rule_is_found_below_the_level_of_the_outputs() -> None:
    """Of a change of 1e-3 at a level of 39000, 1e-9 are missed: 3e-14 of the level."""
    x, background = torch.randn(3, 5, 3).double(), torch.randn(4, 5, 3).double()
    with pytest.raises(AssertionError, match=r"without an exact rule is .*detach"):
        DeepExplainer(AtALevel(0.0, 1e-5).double().eval(), background).shap_values(x)
