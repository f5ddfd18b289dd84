"""In code that torch.fx cannot follow, what is told of a sound model is true, of stock shap and of ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose, diagnose
from rewriter.explainer.additivity import AdditivityError
from tests.rewriter.diagnosis.test_diagnose import stock_error


class Code(nn.Module):
    """``len(x)`` makes it code to torch.fx."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.code = nn.Linear(4, 6), nn.Linear(6, 2), code
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.cell = nn.GRUCell(4, 6)
        self.norm, self.act = nn.LayerNorm(6), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, x)) if len(x) else x


class Twice(torch.autograd.Function):
    """Linear, by numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.numpy())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return 2 * grads[0]


def loop(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(len(x), 6, dtype=x.dtype)
    for _ in range(4):
        h = torch.tanh(m.first(x) + h) * h.sigmoid() + torch.relu(h)
    return h


def written(m: Any, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 5, 6)
    out[:, 0] = m.lstm(m.first(x)[:, None])[0][:, -1]
    out[:, 1] = torch.exp(out[:, 0])
    out[:, 1:3].mul_(2).sigmoid_()
    kept = torch.empty(len(x), 6, dtype=x.dtype)
    kept.copy_(out.sum(1))
    return kept * F.softplus(out[:, 0])


def told_where(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    h += F.softplus(h)
    kept = torch.empty_like(h)
    torch.mul(h, h.sigmoid(), out=kept)
    torch.exp(kept, out=kept)
    return kept


def attention(m: Any, x: Tensor) -> Tensor:
    h = m.lstm(m.first(x)[:, None].expand(-1, 3, -1))[0]
    mixed = F.softmax(h @ h.mT, -1) @ h
    return m.norm(mixed).amax(1) / (2 + mixed[:, 0].cos())


def masked(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    mask = torch.tensor([True, False, False, True, False, False])
    return F.softmax(h.masked_fill(mask, float("-inf")), -1) * h


CASES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "loop": loop,
    "written": written,
    "attention": attention,
    "masked": masked,
    "cell": lambda m, x: m.cell(x, m.cell(x)) * 2,
    "modules": lambda m, x: m.act(m.norm(m.first(x))),
    "linear Function": lambda m, x: torch.tanh(Twice.apply(m.first(x))) * 3,
}


# Torch has no gradient of what is put where it is told, or written over; nor has stock shap.
ONLY_OURS: dict[str, Callable[[Any, Tensor], Tensor]] = {"told where": told_where}


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)


def own_error(model: nn.Module, x: Tensor, background: Tensor) -> float:
    values = DeepExplainer(model, background).shap_values(x, check_additivity=False)
    with torch.no_grad():
        expected = (model(x) - model(background).mean(0)).numpy()
    return float(np.abs(values.sum(1) - expected).max())


@pytest.mark.parametrize("case", CASES)
def test_what_stock_shap_misses_by(case: str) -> None:
    model, (x, background) = Code(CASES[case]).double().eval(), data(torch.float64)
    found = diagnose(model, x, background)
    assert found.total == pytest.approx(stock_error(model, x, background), abs=1e-12)
    assert found.unexplained < 1e-12
    assert found.total > 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES | ONLY_OURS)
def test_nothing_is_blamed_that_has_its_rule(case: str, dtype: torch.dtype) -> None:
    model, (x, background) = Code((CASES | ONLY_OURS)[case]).to(dtype).eval(), data(dtype)
    assert decompose(model).report.islands
    found = diagnose(decompose(model), x, background)
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    assert own_error(model, x, background) < exact
    assert found.total < exact
    assert found.broken == ()
    assert "passes on all" in str(found)


def first_in_code(m: Any, x: Tensor) -> Tensor:
    h = torch.tanh(m.first(x))
    h = h + h.mode(1, keepdim=True)[0]
    return torch.exp(h) * h.renorm(2, 0, 0.1)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_the_first_of_two_is_named() -> None:
    model, (x, background) = Code(first_in_code).double(), data(torch.float64)
    line = inspect.getsourcelines(first_in_code)[1] + 2
    with pytest.raises(AdditivityError, match=rf"\(mode, test_code_without_a_graph\.py:{line}\)"):
        DeepExplainer(model, background).shap_values(x)
    broken = diagnose(decompose(model), x, background).broken
    assert {row.operation for row in broken} == {"mode", "renorm"}


def test_a_module_without_a_rule_of_its_own_runs_as_code() -> None:
    """A hook makes it the user's; what it calls gets its rule all the same."""
    model, (x, background) = Code(CASES["modules"]).double(), data(torch.float64)
    model.act.register_forward_hook(lambda *_: None)
    assert own_error(model, x, background) < 1e-12
    decomposed = decompose(model, x)
    assert decomposed.report.uncovered == ()
    assert diagnose(decomposed, x, background).broken == ()


def saturated() -> tuple[nn.Module, Tensor, Tensor]:
    """Large logits of nearly the same size: float32 has no digits left for what the softmax tells apart."""
    torch.manual_seed(1234)
    layers = [nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10), nn.Softmax(1)]
    for layer in layers[:5:2]:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    return nn.Sequential(*layers), torch.arange(0.0, 120.0).reshape(3, 40), torch.zeros(1, 40)


def test_rounding_is_not_called_a_missing_rule() -> None:
    model, x, background = saturated()
    found = diagnose(decompose(model), x, background)
    assert found.total > 1e-3
    assert found.in_float64 is not None
    assert found.in_float64 < 1e-9
    assert found.broken == ()
    assert "error in float64" in str(found)
    assert not [row for row in found.rows if row.advice]


def test_a_level_hides_no_missing_rule() -> None:
    class Level(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.cos().mode(1, keepdim=True)[0] + 39000

    x, background = torch.randn(3, 4), torch.randn(5, 4)
    found = diagnose(decompose(Level()), x, background)
    assert [row.operation for row in found.broken] == ["mode"]
    assert found.broken[0].gap > 1e-2


class InPlace(nn.Module):
    """Cuts in place, and goes on writing there."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        with torch.no_grad():
            h.mul_(2)
        return h.add_(1) if len(x) else x


def test_what_is_written_without_gradients_is_named() -> None:
    model, (x, background) = InPlace().double(), data(torch.float64)
    line = inspect.getsourcelines(InPlace.forward)[1] + 3
    with pytest.raises(AdditivityError, match=rf"\(mul_, test_code_without_a_graph\.py:{line}\): cuts"):
        DeepExplainer(model, background).shap_values(x)
    found = diagnose(decompose(model), x, background)
    (row,) = found.broken
    assert (row.operation, row.source) == ("mul_", f"test_code_without_a_graph.py:{line}")
    # By hand: the multiplier is that of tanh, and the result changes twice as much.
    change = (torch.tanh(x)[:, None] - torch.tanh(background)[None]).mean(1)
    assert row.gap == pytest.approx(float(change.abs().max()), abs=1e-12)
    assert found.unexplained < 1e-12


class Unseen(nn.Module):
    """No call is seen to make the tensor, and two have read numbers."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = [float(each) for each in x.sum(1)]
        numbers = x.tolist()
        made = torch.DoubleTensor(numbers)
        return torch.tanh(x) + made if len(sizes) else x


def test_what_is_not_seen_to_be_made_is_said_so() -> None:
    model, (x, background) = Unseen().double(), data(torch.float64)
    first = inspect.getsourcelines(Unseen.forward)[1]
    with pytest.raises(AdditivityError) as caught:
        DeepExplainer(model, background).shap_values(x)
    said = str(caught.value)
    assert f"(add, test_code_without_a_graph.py:{first + 4})" in said
    readers = (
        f"float (test_code_without_a_graph.py:{first + 1}), tolist (test_code_without_a_graph.py:{first + 2})"
    )
    assert f"by way of Python or numpy, read by one of {readers}" in said
