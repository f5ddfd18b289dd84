"""Comparing changes nothing, and says what may mislead."""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import RewriteError, assert_equivalent, check_equivalence, decompose
from tests.support.comparisons import Function, Wraps, failing

# Of the module, and so no part of any model.
CALLS = itertools.count(1)


def snapshot(*models: nn.Module) -> list[Any]:
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    found += [torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.enabled]
    for model in models:
        found += [(name, id(m), m.training, sorted(vars(m))) for name, m in model.named_modules()]
        found += [
            (id(p), p.tolist(), p.dtype, None if p.grad is None else p.grad.tolist())
            for p in model.parameters()
        ]
        found += [(id(b), b.tolist(), b.dtype) for b in model.buffers()]
    return found


class Draws(nn.Module):
    """Has all that a check could change: buffers, random draws of three kinds, state, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, dropout=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.broken = False
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        out, self.last = self.lstm(x * (random.random() + float(np.random.rand()) + torch.rand(())))
        if self.broken:
            raise ValueError("broken")
        return self.norm(out[-1])


@pytest.mark.parametrize("broken", ["neither", "rewritten", "original"])
def test_models_inputs_and_global_state_stay(broken: str) -> None:
    original, inputs = Draws(), torch.randn(5, 2, 3)
    rewritten: Any
    original(inputs.clone()).sum().backward()
    rewritten = decompose(original)
    original.broken, rewritten.broken = broken == "original", broken == "rewritten"
    before, kept = snapshot(original, rewritten), inputs.clone()
    if broken == "original":
        with pytest.raises(RewriteError):
            check_equivalence(original, rewritten, inputs)
    else:
        report = check_equivalence(original, rewritten, inputs)
        assert report.equal is (broken == "neither"), str(report)
    assert snapshot(original, rewritten) == before
    assert torch.equal(inputs, kept)
    assert not inputs.requires_grad
    assert inputs.grad is None


def test_a_model_that_keeps_its_state_is_compared_from_the_same_state_each_time() -> None:
    class Keeps(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)
            self.state: Any = None
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            out, self.state = self.lstm(x, self.state)
            self.calls += 1
            return out * self.calls

    model, inputs = Keeps(), torch.randn(5, 2, 3)
    model(inputs)
    rewritten = decompose(model)
    state, calls = model.state, model.calls.item()
    assert_equivalent(model, rewritten, inputs)
    assert model.state is state
    assert model.calls == calls


def test_it_works_where_gradients_are_off() -> None:
    model = nn.GRU(2, 3)
    wrong = Wraps(model, lambda result: (result[0].detach(), result[1]))
    with torch.no_grad():
        assert not check_equivalence(Wraps(model), wrong, torch.randn(3, 2)).equal
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert check_equivalence(model, decompose(model), torch.randn(3, 2)).equal


def test_modes_that_differ_are_noted() -> None:
    report = check_equivalence(nn.Linear(2, 2), nn.Linear(2, 2).eval(), torch.randn(3, 2))
    assert "note: the original is in training mode, the rewritten model in evaluation mode" in str(report)


def test_inner_modes_that_differ_are_noted() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    other = copy.deepcopy(model)
    other[1].eval()
    report = check_equivalence(model, other, torch.randn(3, 2), seeds=1)
    assert "1 is in training mode in the original, in evaluation mode in the rewritten" in report.notes
    for mode in (True, False):
        gru = nn.Sequential(nn.GRU(2, 3, 2)).train(mode)
        for rewritten in (decompose(gru), decompose(gru, torch.randn(3, 2))):
            assert not check_equivalence(gru, rewritten, torch.randn(3, 2), seeds=1).notes


def test_buffers_after_the_call_are_compared() -> None:
    right, wrong = nn.BatchNorm1d(2, momentum=0.1), nn.BatchNorm1d(2, momentum=0.9)
    report = check_equivalence(right, wrong, torch.randn(4, 2))
    places = {("buffer after the call", name) for name in ("running_mean", "running_var")}
    assert failing(report) == places
    assert check_equivalence(right, copy.deepcopy(right), torch.randn(4, 2)).equal
    assert check_equivalence(right.eval(), wrong.eval(), torch.randn(4, 2)).equal


def test_a_buffer_that_was_never_written_is_no_difference() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("unused", torch.full((2,), math.nan))
    assert check_equivalence(model, copy.deepcopy(model), torch.randn(3, 2), seeds=1).equal


def test_an_original_that_differs_from_itself_is_noted() -> None:
    model = Function(lambda x: x * next(CALLS))
    report = check_equivalence(model, Function(lambda x: x), torch.ones(2), seeds=1)
    assert "differs from itself when run twice from the same seed, at output" in report.notes[0]


class Compiled(nn.Module):
    """Computes something else than what it has under the name that torch.compile uses."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self._orig_mod(x)


def test_a_module_is_not_taken_for_compiled_by_the_name_of_an_attribute() -> None:
    wrong = Compiled()
    report = check_equivalence(Wraps(wrong._orig_mod), wrong, torch.randn(3, 2))
    assert ("output", "output") in failing(report)


def test_compiled_models_are_compared_without_compile_and_noted() -> None:
    model = nn.Linear(2, 2)
    compiled: Any = torch.compile(model, backend="eager")
    report = check_equivalence(model, compiled, torch.randn(3, 2), seeds=1)
    assert report.equal
    assert report.notes == ("the rewritten model was compared without torch.compile",)
