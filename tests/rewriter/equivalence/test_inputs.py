"""Inputs of other numbers, parameters without counterpart, and dtypes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import RewriteError, assert_equivalent, check_equivalence
from rewriter.equivalence.variation import redraw
from tests.support.comparisons import Function, Wraps, failing


def test_random_inputs_stay_valid() -> None:
    example: dict[str, Any] = {
        "x": torch.tensor([0.5, -1.5, 3.0, 0.25]),
        "state": torch.zeros(2, 3),
        "scale": torch.tensor([4.0]),
        "mask": torch.tensor([1.0, 0.0, 1.0]),
        "bias": torch.tensor([0.5, -math.inf, 0.1]),
        "lengths": torch.tensor([3, 2]),
        "name": "left as it is",
    }
    first, again, other = redraw(example, 1), redraw(example, 1), redraw(example, 2)
    for key in ("x", "state", "scale", "bias"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], example[key])
        assert not torch.equal(first[key], other[key])
    assert first["x"].min() >= -1.5
    assert first["x"].max() <= 3
    assert 2 <= first["scale"].item() <= 6
    assert first["bias"][1] == -math.inf
    assert torch.equal(first["mask"], example["mask"])
    assert torch.equal(first["lengths"], example["lengths"])
    assert first["name"] == example["name"]


def test_a_fault_that_the_example_hides_is_found_by_another_seed() -> None:
    gru = nn.GRU(3, 4)
    forgets_state = Function(lambda x, h: gru(x))
    inputs = (torch.randn(5, 2, 3), torch.zeros(1, 2, 4))
    faults = check_equivalence(Function(gru), forgets_state, inputs).failures
    assert {each.seed for each in faults if each.kind == "output"} <= {1, 2}
    assert {each.place for each in faults if each.kind == "output"} == {"output[0]", "output[1]"}


def test_random_inputs_that_the_original_refuses_are_left_out_with_a_note() -> None:
    def picky(x: Tensor) -> Tensor:
        if not torch.equal(x, torch.ones_like(x)):
            raise ValueError("ones only")
        return 2 * x

    report = check_equivalence(Function(picky), Function(picky), torch.ones(2), seeds=2)
    assert report.equal
    assert report.seeds == 1
    assert "for 1 input(s)" in str(report)
    assert sum("left out" in note for note in report.notes) == 2
    assert "size 2 of input dimension 0 stays as in the example: ValueError: ones only" in report.notes
    assert (
        "float32, seed 1 was left out: the original does not take random floats: ValueError: ones only"
        in str(report)
    )


def test_only_different_inputs_are_counted() -> None:
    model = nn.Flatten(0)
    report = check_equivalence(model, model, torch.tensor(3))
    assert report.equal
    assert report.seeds == 1
    assert str(report).startswith("Flatten and Flatten are equal in float32 and float64, for 1 input(s)")
    assert any(note.startswith("one input: ") for note in report.notes)
    assert check_equivalence(nn.ReLU(), nn.ReLU(), torch.randn(3), seeds=4).seeds == 4


def test_a_parameter_without_counterpart_is_reported() -> None:
    with_bias, without = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        without.weight.copy_(with_bias.weight)
        with_bias.bias.zero_()
    report = check_equivalence(with_bias, without, torch.randn(3, 2))
    assert failing(report) == {("parameter gradient", "bias")}
    assert "bias: no counterpart in the rewritten model" in str(report)
    assert failing(check_equivalence(without, with_bias, torch.randn(3, 2))) == {
        ("parameter gradient", "bias (rewritten)")
    }


def test_unused_parameters_need_no_counterpart() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.spare = nn.Linear(7, 7)
    unused = Function(model[0])
    assert check_equivalence(Wraps(model[0]), unused, torch.randn(3, 2)).equal
    wrapped = Wraps(model[0])
    wrapped.spare = nn.Linear(7, 7)
    assert check_equivalence(wrapped, Wraps(model[0]), torch.randn(3, 2)).equal
    assert check_equivalence(Wraps(model[0]), wrapped, torch.randn(3, 2)).equal


def test_a_parameter_of_another_shape_is_reported() -> None:
    class Row(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(shape))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    report = check_equivalence(Row(1, 2), Row(2), torch.randn(3, 2))
    assert {each.problem for each in report.failures} == {"expected shape (1, 2), got (2,) for w"}


def test_a_frozen_parameter_that_became_trainable_is_reported() -> None:
    model = nn.Linear(2, 2)
    thawed = copy.deepcopy(model)
    model.weight.requires_grad_(False)
    assert failing(check_equivalence(model, thawed, torch.randn(3, 2))) == {("parameter gradient", "weight")}


class Fixed(nn.Module):
    """Runs in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float())


def test_a_dtype_in_which_the_original_does_not_run_is_not_claimed() -> None:
    model = Fixed()
    report = check_equivalence(model, copy.deepcopy(model), torch.randn(3, 2))
    assert list(report.not_compared) == ["float64"]
    assert not report.failures
    assert not report.equal
    assert not report.equal_in("float64")
    assert str(report).startswith("Fixed and Fixed are equal in float32, for 3 input(s)")
    assert "not compared in float64: the original does not run: RuntimeError" in str(report)
    with pytest.raises(RewriteError, match="pass tolerances"):
        assert_equivalent(model, model, torch.randn(3, 2))
    assert_equivalent(model, model, torch.randn(3, 2), tolerances={torch.float32: 1e-5})


def test_a_rewritten_model_that_runs_in_fewer_dtypes_is_caught() -> None:
    model = Fixed()
    report = check_equivalence(Wraps(model.linear), model, torch.randn(3, 2))
    assert failing(report) == {("run", "rewritten")}
    assert report.equal_in("float32")
    assert "the original runs, the rewritten model raises RuntimeError" in str(report)


class Zeros(nn.Module):
    """Creates its state in the default dtype."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 3)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, torch.zeros(x.shape[0], 3, **self.given(x)))


def test_the_default_dtype_is_changed_only_for_an_original_that_needs_it() -> None:
    depends, follows = Zeros(lambda x: {}), Zeros(lambda x: {"dtype": x.dtype})
    depends.cell = follows.cell
    report = check_equivalence(depends, follows, torch.randn(4, 2))
    assert report.equal
    assert "float64 both models ran with torch.set_default_dtype(torch.float64)" in report.notes[-1]
    assert not check_equivalence(follows, depends, torch.randn(4, 2)).equal_in("float64")
    assert torch.get_default_dtype() == torch.float32
