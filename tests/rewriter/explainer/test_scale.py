"""Additivity is judged against each output's own change, and rounding is told from a missing rule."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, check_equivalence


class TwoHeads(nn.Module):
    """A risk between 0 and 1, through an operation without a rule if asked to, and a cost."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.gru, self.risk, self.cost = nn.GRU(4, 8, batch_first=True), nn.Linear(9, 1), nn.Linear(8, 1)
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        h = self.gru(x)[0][:, -1]
        middle = x[..., :1].mode(1)[0] if self.broken else x[..., :1].mean(1)
        risk = torch.sigmoid(self.risk(torch.cat([h, 3 * middle], 1)))
        return torch.cat([risk, 20000 + 500 * self.cost(h)], 1)


class Level(nn.Module):
    """A forecast around a price, of which a part has no gradient if asked to."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.gru, self.head, self.broken = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 1), broken

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        h = self.gru(x - (mean.detach() if self.broken else mean))[0][:, -1]
        return 39000 + 20 * (self.head(h) + mean.sum((1, 2))[:, None])


@pytest.mark.parametrize("kind", [TwoHeads, Level])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_level_hides_what_is_missing(kind: type[TwoHeads | Level], dtype: torch.dtype) -> None:
    x, background = torch.randn(5, 9, 4, dtype=dtype), torch.randn(12, 9, 4, dtype=dtype)
    model = kind(broken=True).to(dtype).eval()
    with pytest.raises(AssertionError, match=r"of that change \(tolerance"):
        DeepExplainer(model, background).shap_values(x)
    exact = kind(broken=False).to(dtype).eval()
    values = DeepExplainer(exact, background).shap_values(x)
    change = (exact(x) - exact(background).mean(0)).detach().numpy()
    # A price of 39000 has a rounding of 2e-3 in float32.
    tolerance = {torch.float32: 2e-2, torch.float64: 1e-9}[dtype]
    assert np.abs(values.sum((1, 2)) - change).max() < tolerance


def test_the_operation_is_named_whatever_the_other_output_is() -> None:
    x, background = torch.randn(5, 9, 4), torch.randn(12, 9, 4)
    with pytest.raises(AssertionError, match=r"output 0 of sample .* without an exact rule is mode"):
        DeepExplainer(TwoHeads(broken=True).eval(), background).shap_values(x)


def test_rounding_of_float32_is_no_missing_rule() -> None:
    torch.manual_seed(1234)
    model = nn.Sequential(
        *(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10), nn.Softmax(1))
    )
    for layer in list(model)[::2]:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]  # of a Linear
    x, background = torch.arange(0.0, 120.0).reshape(3, 40), torch.zeros(1, 40)
    for dtype in (torch.float64, torch.float32):
        typed = copy.deepcopy(model).to(dtype)
        values = DeepExplainer(typed, background.to(dtype)).shap_values(x.to(dtype))
        assert np.isfinite(values).all()


class OneNumber(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gru, self.shape = nn.GRU(3, 4, batch_first=True), shape

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y = self.gru(x)[0]
        last = y[:, -1] if lengths is None else y[torch.arange(len(y)), lengths - 1]
        return torch.tanh(last).reshape(len(y), *self.shape) if self.shape else torch.tanh(last).sum(1)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
def test_outputs_of_any_shape_without_gradients_and_with_lengths(shape: tuple[int, ...]) -> None:
    model = OneNumber(shape).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 4))
    lengths = torch.tensor([3, 5, 2, 4])
    explainer = DeepExplainer(model, background)
    with_lengths = DeepExplainer(model, [background, lengths])
    with torch.no_grad():
        values = explainer.shap_values(x)
        change = (model(x) - model(background).mean(0)).numpy()
        both = with_lengths.shap_values([x, lengths[:2]])
        change_with = (model(x, lengths[:2]) - model(background, lengths).mean(0)).numpy()
    assert np.abs(values.sum((1, 2)) - change).max() < 1e-12
    total = both[0].sum((1, 2)) + both[1].reshape(2, -1, *shape).sum(1)
    assert np.abs(total - change_with).max() < 1e-12


class Tokens(nn.Module):
    """Integers alone, and an operation without a rule; in float32 whatever it is made of, if asked to."""

    def __init__(self, *, narrow: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.narrow = nn.Embedding(9, 4), nn.Linear(4, 1), narrow

    def forward(self, tokens: Tensor) -> Tensor:
        middle = self.embedding(tokens).mode(1)[0]
        y: Tensor = self.head(torch.exp(3 * middle))
        return y.float() if self.narrow else y


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_cannot_be_computed_wider_is_asked_once(dtype: torch.dtype, narrow: bool) -> None:
    tokens = torch.randint(0, 9, (8, 5))
    model = Tokens(narrow=narrow).to(dtype)
    with pytest.raises(AssertionError, match=r"mode, test_scale\.py"):
        DeepExplainer(model, tokens[3:]).shap_values(tokens[:3])


@pytest.mark.filterwarnings("ignore")
def test_a_single_output_can_be_drawn() -> None:
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    explainer, x = DeepExplainer(model, torch.randn(5, 4)), torch.randn(3, 4)
    values = explainer.shap_values(x)
    shap.force_plot(explainer.expected_value, values)
    shap.decision_plot(explainer.expected_value, values, show=False)
    plt.close("all")


def test_a_report_is_its_verdict() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert check_equivalence(one, one, torch.randn(3, 2))
    assert not check_equivalence(one, other, torch.randn(3, 2))


def test_permuted_weights_are_not_taken_for_the_old_ones() -> None:
    head = nn.Linear(6, 4)
    # In an order of memory of its own, and with the same sum afterwards.
    head.weight = nn.Parameter(torch.randn(6, 4).t())
    model = nn.Sequential(nn.Flatten(), head, nn.Tanh())
    x, background = torch.randn(2, 2, 3), torch.randn(4, 2, 3)
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x)
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0))
    fresh = DeepExplainer(model, background).shap_values(x)
    np.testing.assert_allclose(explainer.shap_values(x), fresh, rtol=0, atol=1e-6)
