"""Whoever explains also localises: the planted line is named, in a graph and in code without one.

The oracles: the explainer's own error, of values that are not checked; and what the planted call alone loses,
by torch's gradient of it and the weights of the one linear layer behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose, diagnose
from rewriter.explainer.additivity import AdditivityError


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grads[0]


class Rounded(torch.autograd.Function):
    """With the gradient of what it is not."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(np.round(2 * x.numpy()))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


square = Square.apply


def mode(h: Tensor) -> Tensor:
    return h.mode(1, keepdim=True)[0].expand_as(h)  # planted


def renorm(h: Tensor) -> Tensor:
    return h.renorm(2, 0, 0.1)  # planted


def function(h: Tensor) -> Tensor:
    made = square(h)  # planted
    return made.sin()


def function_of_numpy(h: Tensor) -> Tensor:
    made = Rounded.apply(h)  # planted
    return torch.exp(made)


def detach(h: Tensor) -> Tensor:
    cut = h.detach()  # planted
    cut = torch.tanh(cut)
    cut[:, 0] += 1
    return cut


def data(h: Tensor) -> Tensor:
    return h.data  # planted


def no_grad(h: Tensor) -> Tensor:
    with torch.no_grad():
        cut = h * 2  # planted
    return torch.tanh(cut)


def no_grad_in_place(h: Tensor) -> Tensor:
    kept = torch.zeros_like(h)
    with torch.no_grad():
        kept += h  # planted
    return kept


def whole_numbers(h: Tensor) -> Tensor:
    whole = (4 * h).long()
    return whole.to(h.dtype)  # planted


def rounded(h: Tensor) -> Tensor:
    return (4 * h).int().to(h.dtype)  # planted


def item(h: Tensor) -> Tensor:
    numbers = [row.sum().item() for row in h]
    return torch.tensor(numbers, dtype=h.dtype)[:, None]  # planted


def by_numpy(h: Tensor) -> Tensor:
    numbers = h.detach().numpy()  # planted
    return torch.from_numpy(np.exp(numbers))


def by_numpy_alone(h: Tensor) -> Tensor:
    numbers = np.exp(h.numpy())  # planted
    return torch.from_numpy(numbers)


def by_list(h: Tensor) -> Tensor:
    return torch.tensor(h.tolist(), dtype=h.dtype)  # planted


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "mode": (mode, "mode", "has no rule"),
    "renorm": (renorm, "renorm", "has no rule"),
    "function": (function, "Square", "an autograd Function"),
    "function of numpy": (function_of_numpy, "Rounded", "an autograd Function"),
    "detach": (detach, "detach", "cuts the gradient"),
    "data": (data, "data", "cuts the gradient"),
    "no_grad": (no_grad, "mul", "as under torch.no_grad"),
    "no_grad in place": (no_grad_in_place, "add_", "as under torch.no_grad"),
    "whole numbers": (whole_numbers, "to", "a mask, index or number"),
    "rounded": (rounded, "to", "a mask, index or number"),
    "item": (item, "tensor", "read by item (test_culprits.py:"),
    "numpy": (by_numpy, "numpy", "by way of Python or numpy"),
    "numpy of what has no gradient": (by_numpy_alone, "numpy", "by way of Python or numpy"),
    "list": (by_list, "tensor", "read by tolist (test_culprits.py:"),
}
# What torch has no gradient of by itself, or none that is wanted here.
NOT_ALONE = {"function", "function of numpy", "numpy of what has no gradient"}
# What one form of a call is called by a graph and by a mode.
SAME = {"add_": {"add_", "iadd"}}


def line_of(kind: str) -> str:
    lines, first = inspect.getsourcelines(KINDS[kind][0])
    return f"test_culprits.py:{first + next(k for k, each in enumerate(lines) if '# planted' in each)}"


class Graph(nn.Module):
    """A planted call beside one with a rule, and a linear layer behind."""

    def __init__(self, planted: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.planted = nn.Linear(3, 4), nn.Linear(4, 2), planted

    def before(self, x: Any) -> Tensor:
        return torch.tanh(self.first(x))

    def behind(self, h: Tensor) -> Tensor:
        return self.last(torch.sigmoid(h) * h + self.planted(h))

    def forward(self, x: Any) -> Tensor:
        return self.behind(self.before(x))


class Code(Graph):
    """All of it is code that torch.fx cannot follow."""

    def before(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        for _ in range(3):
            h = torch.tanh(self.first(x) + h) * h.cos()
        return h


class Part(nn.Module):
    def __init__(self, planted: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.planted = planted

    def forward(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h) * h + self.planted(h) if len(h) else h


class Island(Graph):
    """A part of a graph is such code."""

    def __init__(self, planted: Callable[[Tensor], Tensor]) -> None:
        super().__init__(planted)
        self.part = Part(planted)

    def behind(self, h: Tensor) -> Tensor:
        return self.last(self.part(h))


class Lengths(Graph):
    """Sequences are read up to lengths of their own."""

    def __init__(self, planted: Callable[[Tensor], Tensor]) -> None:
        super().__init__(planted)
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def before(self, x: Any) -> Tensor:
        sequences, lengths = x
        return self.lstm(sequences)[0][torch.arange(len(lengths)), lengths - 1]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        return self.behind(self.before((x, lengths)))


PLACES: dict[str, type[Graph]] = {"graph": Graph, "code": Code, "island": Island, "lengths": Lengths}


def problem(place: str, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Graph, Any, Any]:
    torch.manual_seed(0)
    model = PLACES[place](KINDS[kind][0]).to(dtype).eval()
    if place == "lengths":
        x, background = ([torch.randn(n, 5, 3, dtype=dtype), torch.randint(2, 6, (n,))] for n in (3, 5))
        return model, x, background
    return model, 2 * torch.randn(3, 3, dtype=dtype), 2 * torch.randn(5, 3, dtype=dtype)


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(*inputs) if isinstance(inputs, list) else model(inputs)


def explainers_error(model: nn.Module, x: Any, background: Any) -> float:
    values = DeepExplainer(model, background).shap_values(x, check_additivity=False)
    values = values if isinstance(values, list) else [values]
    f = outputs(model, x)
    total = sum(each.reshape(len(f), -1, f.shape[1]).sum(1) for each in values)
    return float(np.abs(total - (f - outputs(model, background).mean(0)).numpy()).max())


def lost_by_hand(model: Graph, kind: str, x: Any, background: Any) -> float:
    """What the planted function alone loses: nothing but ``model.last`` is behind it."""
    planted, worst = KINDS[kind][0], 0.0
    rows = len(x[0]) if isinstance(x, list) else len(x)
    for i in range(rows):
        if isinstance(x, list):
            # References are read in the context of the sample.
            count = len(background[1])
            h = model.before([x[0][i : i + 1], x[1][i : i + 1]]).detach().expand(count, -1)
            h0 = model.before([background[0], x[1][i].expand(count)]).detach()
        else:
            h0 = model.before(background).detach()
            h = model.before(x[i : i + 1]).detach().expand(len(h0), -1)
        for weights in model.last.weight.detach():
            leaf = h.clone().requires_grad_()
            made = planted(leaf * 1).expand_as(h)
            change = ((made.detach() - planted(h0).expand_as(h)) @ weights).mean()
            slope = torch.zeros_like(h)
            if made.requires_grad:
                (slope,) = torch.autograd.grad(made @ weights, leaf, torch.ones(len(h), dtype=h.dtype))
            worst = max(worst, abs(float(change - (slope * (h - h0)).sum(1).mean())))
    return worst


# Of torch's, about what it has no form for that takes several outputs at once.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    # Other tests run the same code; coverage would take as long again.
    pytest.mark.unmeasured,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_the_planted_line(kind: str, place: str) -> None:
    model, x, background = problem(place, kind)
    _, operation, reason = KINDS[kind]
    with pytest.raises(AdditivityError) as caught:
        DeepExplainer(model, background).shap_values(x)
    said = str(caught.value)
    named = [f"({each}, {line_of(kind)})" for each in SAME.get(operation, {operation})]
    assert any(each in said for each in named), said
    assert reason in said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_diagnose_names_the_planted_line_and_no_other(kind: str, place: str) -> None:
    model, x, background = problem(place, kind)
    found = diagnose(decompose(model), x, background)
    assert {row.source for row in found.broken} == {line_of(kind)}
    assert found.broken[0].operation in SAME.get(KINDS[kind][1], {KINDS[kind][1]})
    assert KINDS[kind][2] in found.broken[0].advice
    assert found.unexplained < 1e-12


@pytest.mark.parametrize("place", ["graph", "code", "island"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_total_is_the_explainers_error(kind: str, place: str) -> None:
    model, x, background = problem(place, kind)
    found = diagnose(decompose(model), x, background)
    assert found.total == pytest.approx(explainers_error(model, x, background), abs=1e-12)
    assert found.total > 1e-4


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [each for each in KINDS if each not in NOT_ALONE])
def test_the_gap_is_what_the_call_loses(kind: str, place: str) -> None:
    model, x, background = problem(place, kind)
    found = diagnose(decompose(model), x, background)
    assert found.broken[0].gap == pytest.approx(lost_by_hand(model, kind, x, background), abs=1e-12)


@pytest.mark.parametrize("place", ["graph", "code", "island"])
@pytest.mark.parametrize("kind", ["function", "function of numpy", "no_grad", "detach", "data", "numpy"])
def test_the_report_lists_it(kind: str, place: str) -> None:
    model, x, _ = problem(place, kind)
    listed = decompose(model, x).report.uncovered
    assert line_of(kind) in [each.source for each in listed]
    assert any(KINDS[kind][2].split(" by ")[0] in each.reason or "cuts" in each.reason for each in listed)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_the_same_is_named(kind: str) -> None:
    model, x, background = problem("code", kind, torch.float32)
    found = diagnose(decompose(model), x, background)
    assert {row.source for row in found.broken} == {line_of(kind)}
    assert found.in_float64 == pytest.approx(found.total, rel=1e-3)
