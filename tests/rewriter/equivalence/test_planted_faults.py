"""Planted faults are caught, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from passes.recurrent.recurrence import Recurrence
from rewriter import check_equivalence, decompose
from tests.support.comparisons import Function, Wraps, failing


def swap_gates(rnn: nn.LSTM) -> nn.LSTM:
    """Take the rows of i for those of f, in the input weights of layer 1."""
    wrong = copy.deepcopy(rnn)
    with torch.no_grad():
        weight = wrong.weight_ih_l1
        weight.copy_(torch.cat((weight[4:8], weight[:4], weight[8:])))
    return wrong


def drop_bias(rnn: nn.LSTM) -> nn.LSTM:
    wrong = copy.deepcopy(rnn)
    with torch.no_grad():
        wrong.bias_hh_l0.zero_()
    return wrong


@pytest.mark.parametrize("fault", [swap_gates, drop_bias])
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_wrong_weight_is_caught(fault: Callable[[nn.LSTM], nn.LSTM], decomposed: bool) -> None:
    model = nn.LSTM(3, 4, 2)
    wrong = fault(model)
    report = check_equivalence(model, decompose(wrong) if decomposed else wrong, torch.randn(5, 2, 3))
    assert {("output", "output[0]"), ("output", "output[1][0]"), ("output", "output[1][1]")} < failing(report)
    assert not report.equal_in("float32")
    assert not report.equal_in("float64")


def test_a_reverse_direction_that_is_not_reversed_is_caught() -> None:
    model = nn.GRU(3, 4, bidirectional=True)
    wrong = decompose(model)
    (reverse,) = [m for m in wrong.modules() if isinstance(m, Recurrence) and m.reverse]
    reverse.reverse = False
    report = check_equivalence(model, wrong, torch.randn(5, 2, 3))
    assert {("output", "output[0]"), ("output", "output[1]")} <= failing(report)
    worst = next(each for each in report.failures if each.place == "output[0]")
    assert worst.index[-1] >= 4, "only the features of the reverse direction differ"


def test_a_step_too_many_is_caught_although_all_shapes_agree() -> None:
    lstm = nn.LSTM(3, 4)
    off = Wraps(lstm, lambda result: (result[0].roll(1, 0), result[1]))
    report = check_equivalence(Wraps(lstm), off, torch.randn(5, 2, 3))
    assert ("output", "output[0]") in failing(report)
    assert not {("output", "output[1][0]"), ("output", "output[1][1]")} & failing(report)


@pytest.mark.parametrize("state", [0, 1])
def test_a_wrong_final_state_alone_is_caught(state: int) -> None:
    def spoil(result: Any) -> Any:
        out, states = result
        return out, tuple(s + 1e-6 if k == state else s for k, s in enumerate(states))

    lstm = nn.LSTM(3, 4)
    report = check_equivalence(Wraps(lstm), Wraps(lstm, spoil), torch.randn(5, 2, 3))
    assert failing(report) == {("output", f"output[1][{state}]")}
    assert report.equal_in("float32")
    assert not report.equal_in("float64")


def test_a_gradient_lost_at_one_state_is_caught_although_all_outputs_agree() -> None:
    lstm = nn.LSTM(3, 4)
    lost = Wraps(lstm, lambda result: (result[0], (result[1][0], result[1][1].detach())))
    report = check_equivalence(Wraps(lstm), lost, torch.randn(5, 2, 3))
    assert {kind for kind, _ in failing(report)} == {"input gradient", "parameter gradient"}
    assert ("input gradient", "input") in failing(report)


def test_a_gradient_lost_at_one_parameter_is_caught() -> None:
    class Forgets(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Any:
            return functional_call(self.rnn, {"bias_ih_l0": self.rnn.bias_ih_l0.detach()}, (x,))

    rnn = nn.RNN(3, 4)
    report = check_equivalence(Wraps(rnn), Forgets(rnn), torch.randn(5, 2, 3))
    assert failing(report) == {("parameter gradient", "rnn.bias_ih_l0")}


def test_a_wrong_gradient_is_shown_with_both_values() -> None:
    right = Function(lambda x: 3 * x)
    wrong = Function(lambda x: 5 * x - (2 * x).detach())
    (failure,) = check_equivalence(right, wrong, torch.ones(1), seeds=1).failures[:1]
    expected, got = (
        float(failure.problem.split(f"{word} ")[1].split(",")[0].split(";")[0])
        for word in ("expected", "got")
    )
    assert got / expected == pytest.approx(5 / 3)
    assert failure.absolute == pytest.approx(abs(got - expected))


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (lambda r: list(r), "output", "expected tuple of 2, got list of 2"),
        (lambda r: (r[0],), "output", "expected tuple of 2, got tuple of 1"),
        (lambda r: r[0], "output", "expected tuple of 2, got Tensor float32 (5, 2, 4) on cpu"),
        (lambda r: (r[0], None), "output[1]", "expected Tensor float32 (1, 2, 4) on cpu, got None"),
        (lambda r: (r[0], r[1][0]), "output[1]", "got Tensor float32 (2, 4) on cpu"),
        (lambda r: (r[0].half(), r[1]), "output[0]", "got Tensor float16 (5, 2, 4) on cpu"),
    ],
)
def test_another_structure_is_caught(change: Callable[[Any], Any], place: str, problem: str) -> None:
    gru = nn.GRU(3, 4)
    report = check_equivalence(Wraps(gru), Wraps(gru, change), torch.randn(5, 2, 3))
    here = [each for each in report.failures if (each.dtype, each.kind) == ("float32", "structure")]
    structures = {each.place: each.problem for each in here}
    assert problem in structures[place]


def test_a_cast_is_caught_in_the_other_dtype() -> None:
    gru = nn.GRU(3, 4)
    report = check_equivalence(Wraps(gru), Wraps(gru, lambda r: (r[0].float(), r[1])), torch.randn(5, 2, 3))
    assert report.equal_in("float32")
    found = [each.problem for each in report.failures if each.dtype == "float64" and each.kind == "structure"]
    assert found == ["expected Tensor float64 (5, 2, 4) on cpu, got Tensor float32 (5, 2, 4) on cpu"]


def test_a_parameter_of_another_dtype_is_caught_although_both_models_are_converted() -> None:
    model = nn.Linear(2, 2)
    report = check_equivalence(model, copy.deepcopy(model).double(), torch.randn(3, 2))
    assert {place for _, place in failing(report)} == {"weight", "bias"}
    assert "expected dtype torch.float32, got torch.float64" in report.failures[0].problem


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_single_changed_weight_is_caught(data: st.DataObject) -> None:
    kind, width = data.draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN])), data.draw(st.integers(1, 3))
    model = kind(2, width, data.draw(st.integers(1, 2)), bidirectional=data.draw(st.booleans())).double()
    wrong = copy.deepcopy(model)
    parameter = data.draw(st.sampled_from(list(wrong.parameters())))
    with torch.no_grad():
        parameter.view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] += 1e-3
    tolerances = {torch.float64: 1e-10}
    inputs = torch.randn(4, 2, 2)
    assert not check_equivalence(model, wrong, inputs, seeds=1, tolerances=tolerances).equal
    assert check_equivalence(model, decompose(model), inputs, seeds=1, tolerances=tolerances).equal
