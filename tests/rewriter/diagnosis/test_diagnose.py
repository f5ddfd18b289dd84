"""The operation that breaks additivity is found; stock shap's own error is the oracle of the sum."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewriter
from rewriter import Diagnosis, RewriteError, decompose, diagnose
from rewriter.diagnosis.stock import NONLINEAR, POOLS
from tests.support.models import gallery

shap = pytest.importorskip("shap")


class Faulty(nn.Module):
    """Linear layers around a function with a fault."""

    def __init__(self, fault: Callable[[Faulty, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.relu, self.sigmoid = nn.ReLU(), nn.Sigmoid()
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.pool = nn.MaxPool1d(2)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fault(self, self.first(x)))


def without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h + 1


def in_place(m: Faulty, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 1:] = h[:, 1:].exp()
    h.mul_(2)
    h.narrow(1, 0, 2).add_(1)
    return h


# What stock shap does wrong, with the operation that has to come first.
FAULTS: dict[str, tuple[Callable[[Faulty, Tensor], Tensor], str, str]] = {
    "softmax": (lambda m, h: F.softmax(m.sigmoid(h), -1), "softmax", "atoms"),
    "lstm": (lambda m, h: m.lstm(torch.stack([h, m.relu(h)], 1))[0][:, -1], "LSTM", "rewrites"),
    "reused": (lambda m, h: m.relu(m.middle(m.relu(h))), "ReLU", "called 2 times"),
    "product": (lambda m, h: h * m.middle(h), "mul", "atoms"),
    "detach": (lambda m, h: h - m.middle(h).detach(), "detach", "cuts the gradient"),
    "data": (lambda m, h: h - m.middle(h).data, "data", "cuts the gradient"),
    "no_grad": (lambda m, h: h + without_gradients(h * 2), "add", "cuts the gradient"),
    "max": (lambda m, h: h - h.max(1, keepdim=True)[0], "max", ""),
    "function": (lambda m, h: torch.tanh(m.relu(h)), "tanh", "atoms"),
    "step": (lambda m, h: torch.where(h > 0, h, m.middle(h)), "where", ""),
    "in place": (in_place, "exp", ""),
}
SOUND: dict[str, Callable[[Faulty, Tensor], Tensor]] = {
    "rules": lambda m, h: m.sigmoid(m.middle(m.relu(h))),
    "pool": lambda m, h: m.pool(m.relu(h)[:, None])[:, 0].repeat(1, 2),
    "linear": lambda m, h: torch.cat([h[:, :3] * 2, -h[:, 3:]], 1),
}


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)


def stock_error(model: nn.Module, x: Any, background: Any) -> float:
    """The additivity error of stock shap."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    with torch.no_grad():
        difference = (model(x) - model(background).mean(0)).numpy()
    return float(np.abs(values.reshape(len(x), -1, difference.shape[1]).sum(1) - difference).max())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_culprit_comes_first(fault: str) -> None:
    function, operation, advice = FAULTS[fault]
    model, (x, background) = Faulty(function).double().eval(), data()
    found = diagnose(model, x, background)
    first = found.rows[0]
    assert first.operation == operation
    assert advice in first.advice
    assert first.share > 0.99
    assert [row.operation for row in found.broken] == [operation]
    assert all(row.advice == "" for row in found.rows[1:])
    # The same sum in another order.
    assert abs(found.total - stock_error(model, x, background)) < 1e-12
    assert abs(found.total - first.gap) < 1e-12
    assert found.total > 1e-3


def test_two_culprits_share_the_error() -> None:
    model = Faulty(lambda m, h: torch.tanh(m.middle(F.softmax(h, -1)) * 3)).double().eval()
    found = diagnose(model, *data())
    assert {row.operation for row in found.broken} == {"tanh", "softmax"}
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.rows[0].gap >= found.rows[1].gap > 0


@pytest.mark.parametrize("case", SOUND)
def test_what_is_additive_is_not_blamed(case: str) -> None:
    model, (x, background) = Faulty(SOUND[case]).double().eval(), data()
    found = diagnose(model, x, background)
    assert found.broken == ()
    assert found.total < 1e-12
    assert stock_error(model, x, background) < 1e-12
    assert "passes on all" in str(found)


def test_source_lines() -> None:
    model = Faulty(in_place).double()
    lines, first = inspect.getsourcelines(in_place)
    line = first + next(k for k, each in enumerate(lines) if "exp" in each)
    found = diagnose(model, *data())
    assert found.rows[0].source == f"test_diagnose.py:{line}"
    assert f"test_diagnose.py:{line}" in str(found)


def test_rules_by_name_are_those_of_the_installed_shap() -> None:
    from shap.explainers._deep.deep_pytorch import op_handler

    by_rule = {name: rule.__name__ for name, rule in op_handler.items()}
    assert {name for name, rule in by_rule.items() if rule == "nonlinear_1d"} == NONLINEAR
    assert {name for name, rule in by_rule.items() if rule == "maxpool"} == POOLS


@pytest.mark.parametrize("model", [gallery.Classifier(), gallery.ReadsLength(), gallery.Widened("GRU")])
def test_recurrent_models(model: nn.Module) -> None:
    model = model.double().eval()
    features = 6 if isinstance(model, gallery.Widened) else 3
    x = tuple(torch.randn(rows, 5, features, dtype=torch.float64) for rows in (2, 3))
    found = diagnose(model, *x)
    assert found.rows[0].operation in ("LSTM", "LSTMCell", "GRU")
    assert abs(found.total - stock_error(model, *x)) < 1e-12
    after = diagnose(decompose(model), *x)
    assert after.explainer == "rewriter's rules"
    assert after.broken == ()
    assert after.total < 1e-12


def test_a_decomposed_model_tells_what_is_left() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.gru(x)[0][:, -1]
            return self.head(torch.sigmoid(h) * h + h.renorm(2, 0, 0.1))

    x = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(3, 5, 3, dtype=torch.float64)
    found = diagnose(decompose(Left().double()), *x)
    assert [row.operation for row in found.broken] == ["renorm"]
    assert "has no rule" in found.rows[0].advice
    assert found.rows[0].source.startswith("test_diagnose.py:")


class InCode(nn.Module):
    """Code that torch.fx cannot follow, inside a model that it can."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if len(x) else x


def test_islands() -> None:
    model = nn.Sequential(nn.Linear(4, 4), InCode(), nn.Linear(4, 2)).double()
    x, background = data()
    plain, rewritten = diagnose(model, x, background), diagnose(decompose(model), x, background)
    assert (plain.rows[0].name, plain.rows[0].operation) == ("1", "tanh")
    assert "code that torch.fx cannot follow" in plain.rows[0].advice
    assert len(plain.broken) == 1
    assert plain.total == pytest.approx(stock_error(model, x, background), abs=1e-12)
    # There it gets its rule while the code runs, as the explainer gives it.
    assert rewritten.broken == ()
    assert rewritten.total < 1e-12


@pytest.mark.parametrize(
    "function",
    [
        lambda h: F.hardtanh_(min_val=-0.5, max_val=0.5, input=h * 1),
        lambda h: (h * 1).clamp_(-0.5, 0.5),
        lambda h: F.hardtanh(h * 1, -0.5, 0.5, inplace=True),
        lambda h: torch.clamp(h, -0.5, 0.5, out=torch.empty_like(h)),
        lambda h: torch.zeros_like(h).copy_(h).clamp_(-0.5, 0.5),
    ],
)
def test_wherever_a_call_writes(function: Callable[[Tensor], Tensor]) -> None:
    """The oracle: the same function, of a result of its own."""

    class Writes(nn.Module):
        def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.code = nn.Linear(4, 4), code

        def forward(self, x: Tensor) -> Tensor:
            return self.code(self.first(x)) * 2

    plain = Writes(lambda h: F.hardtanh(h, -0.5, 0.5)).double().requires_grad_(False)
    writing = Writes(function).double().requires_grad_(False)
    writing.load_state_dict(plain.state_dict())
    x, background = data()
    (expected,), (found,) = (diagnose(each, x, background).broken for each in (plain, writing))
    assert found.gap == pytest.approx(expected.gap, abs=1e-12)
    assert expected.gap > 1e-3


def test_time_first_and_merged_batches() -> None:
    """The batch is not in dimension 0 where the fault is."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x.view(-1, 2, 2).repeat(1, 1, 2)).transpose(0, 1).reshape(-1, 3)
            h = h.exp().view(2, -1, 3)
            return self.last(h.transpose(0, 1).flatten(1))

    model, (x, background) = Turned().double(), data()
    found = diagnose(model, x, background)
    assert [row.operation for row in found.broken] == ["exp"]
    assert abs(found.total - stock_error(model, x, background)) < 1e-12


def test_several_inputs_and_a_part_of_the_output() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b, "product": a * b}

    a, b = data()
    inputs = [a, a + 1], [b, b - 1]
    assert diagnose(Two(), *inputs, output="sum").broken == ()
    found = diagnose(Two(), *inputs, output="product")
    assert found.broken[0].operation == "mul"
    with pytest.raises(RewriteError, match="pass output="):
        diagnose(Two(), *inputs)


def test_tokens_are_explained_where_they_are_looked_up() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(tokens)).mean(1))

    tokens = torch.randint(0, 7, (2, 5)), torch.randint(0, 7, (3, 5))
    model = Text().double()
    assert [row.operation for row in diagnose(model, *tokens).broken] == ["tanh"]
    after = diagnose(decompose(model), *tokens)
    assert after.broken == ()
    assert after.total < 1e-12


def test_float32_rounding_is_not_blamed() -> None:
    model = Faulty(SOUND["rules"])
    x, background = (each.float() for each in data())
    assert diagnose(model, x, background).broken == ()


def test_the_model_is_left_as_it_is() -> None:
    model, (x, background) = Faulty(FAULTS["reused"][0]).double().train(), data()
    model.norm = nn.BatchNorm1d(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [sorted(module.__dict__) for module in model.modules()]
    state, inputs = torch.get_rng_state(), (x.clone(), background.clone())
    for failing in (False, True):
        if failing:
            model.fault = lambda m, h: h.view(7, -1)
            with pytest.raises(RewriteError, match="fails on inputs"):
                diagnose(model, x, background)
        else:
            diagnose(model, x, background)
        assert model.training
        assert [sorted(module.__dict__) for module in model.modules()] == attributes
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs[0])
    assert torch.equal(background, inputs[1])


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if bool(x[0].sum() > 0) else torch.sigmoid(x)


BAD: dict[str, tuple[nn.Module, Any, Any, str]] = {
    "no module": (len, torch.ones(1, 2), torch.ones(1, 2), "expected a torch.nn.Module"),  # type: ignore[dict-item]
    "empty background": (
        nn.Linear(2, 1),
        torch.ones(1, 2),
        torch.ones(0, 2),
        "background: expected at least",
    ),
    "no sample": (nn.Linear(2, 1), torch.ones(0, 2), torch.ones(1, 2), "x: expected at least"),
    "shape": (nn.Linear(2, 1), torch.ones(1, 3), torch.ones(1, 2), r"rows of shape \(2,\)"),
    "list": (nn.Linear(2, 1), [torch.ones(1, 2)], torch.ones(1, 2), "expected one tensor like"),
    "nan": (nn.Linear(2, 1), torch.full((1, 2), torch.nan), torch.ones(1, 2), "finite"),
    "both wrong": (nn.Linear(2, 1), torch.ones(1, 3), torch.ones(1, 3), "fails on inputs"),
    "decides": (Decides(), torch.ones(1, 2), -torch.ones(1, 2), "takes another path"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    model, x, background, message = BAD[case]
    with pytest.raises(RewriteError, match=message):
        diagnose(model, x, background)


def test_result_is_data() -> None:
    found = diagnose(Faulty(FAULTS["product"][0]).double(), *data())
    assert isinstance(found, Diagnosis)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["total"] == found.total
    assert plain["rows"][0]["operation"] == "mul"
    assert rewriter.Diagnosis is Diagnosis
    with pytest.raises(AttributeError):
        found.total = 0.0  # type: ignore[misc]


def test_random_numbers_are_told() -> None:
    model = Faulty(lambda m, h: F.dropout(h, 0.5, training=True)).double()
    found = diagnose(model, *data())
    (row,) = [row for row in found.rows if row.operation == "dropout"]
    assert "make it deterministic" in row.advice
    assert found.unexplained > 1e-3
    assert "comes from no operation" in str(found)
    assert diagnose(Faulty(FAULTS["product"][0]).double(), *data()).unexplained < 1e-12
