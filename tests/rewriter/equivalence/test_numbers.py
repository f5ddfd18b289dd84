"""Differences are those that were planted; NaN and infinity hide nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import check_equivalence
from tests.support.comparisons import Function, failing


def test_differences_are_those_that_were_planted() -> None:
    planted = torch.tensor([[0.0, 0.0], [0.0, 0.25]])
    right, wrong = Function(lambda x: 8 * x / x), Function(lambda x: 8 * x / x + planted.to(x))
    report = check_equivalence(right, wrong, torch.full((2, 2), 3.0), seeds=1)
    for failure in report.failures:
        assert (failure.place, failure.index) == ("output", (1, 1))
        assert failure.absolute == pytest.approx(0.25)
        assert failure.relative == pytest.approx(0.25 / 8)
    assert {each.dtype for each in report.failures} == {"float32", "float64"}


def test_small_tensors_are_held_to_an_absolute_difference() -> None:
    right, wrong = Function(lambda x: 1e-3 * x), Function(lambda x: 1e-3 * x + 5e-6)
    report = check_equivalence(right, wrong, torch.ones(3), tolerances={torch.float32: 1e-5})
    assert report.equal
    assert not check_equivalence(right, wrong, torch.ones(3), tolerances={torch.float32: 4e-6}).equal


@pytest.mark.parametrize(
    ("original", "rewritten", "equal"),
    [
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, 1.0, False),
        (1.0, math.inf, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (math.nan, math.nan, True),
    ],
)
def test_infinities_and_nan_must_agree(original: float, rewritten: float, equal: bool) -> None:
    def constant(value: float) -> nn.Module:
        return Function(lambda x: torch.stack((x[0], torch.full_like(x[1], value))))

    report = check_equivalence(constant(original), constant(rewritten), torch.ones(2))
    assert report.equal is equal
    places = {(each.place, each.index) for each in report.failures if each.kind == "output"}
    assert places == (set() if equal else {("output", (1,))})


def test_nan_at_the_same_places_is_noted_and_hides_nothing() -> None:
    def model(factor: float) -> nn.Module:
        return Function(lambda x: (factor * x.where(x < 0.7, math.nan), 1 * x))

    inputs = torch.tensor([0.5, 0.75, 0.6])
    report = check_equivalence(model(2.0), model(2.0), inputs, seeds=1)
    assert report.equal, str(report)
    assert report.notes == ("output output[0]: NaN at the same 1 places in both",)
    report = check_equivalence(model(2.0), model(3.0), inputs, seeds=1)
    assert ("output", "output[0]") in failing(report)


def test_where_all_is_nan_nothing_is_equal() -> None:
    model = Function(lambda x: (x * math.nan, 1 * x))
    report = check_equivalence(model, model, torch.ones(2), seeds=1)
    assert ("output", "output[0]") in failing(report)
    assert report.failures[0].problem == "nothing finite to compare: NaN in both"


def test_nan_in_one_part_of_a_complex_number_does_not_hide_the_other() -> None:
    def model(imaginary: float) -> nn.Module:
        def forward(x: Tensor) -> Any:
            real = torch.stack((x[0], torch.full_like(x[0], math.nan)))
            return torch.complex(real.detach(), torch.full_like(real, imaginary).detach())

        return Function(forward)

    assert check_equivalence(model(1.0), model(1.0), torch.ones(1), seeds=1).equal
    report = check_equivalence(model(1.0), model(2.0), torch.ones(1), seeds=1)
    assert {each.index for each in report.failures} == {(1,)}


def test_outputs_that_are_tiny_are_noted() -> None:
    model = Function(lambda x: (1e-9 * x, 1 * x))
    (note,) = check_equivalence(model, model, torch.ones(2), seeds=1).notes
    assert note == "output output[0]: compared absolutely, for max |original| is 1.0e-09"


def test_nan_in_a_gradient_alone_is_caught() -> None:
    wrong = Function(lambda x: torch.where(x > 0, x, (x - x).sqrt() * 0 + x))
    report = check_equivalence(Function(lambda x: 1 * x), wrong, torch.tensor([1.0, 2.5]))
    assert failing(report) == {("input gradient", "input")}


def test_integer_outputs_must_be_the_same() -> None:
    right = Function(lambda x: (x, torch.tensor([3, 2**40])))
    wrong = Function(lambda x: (x, torch.tensor([3, 2**40 + 1])))
    assert failing(check_equivalence(right, wrong, torch.ones(1))) == {("output", "output[1]")}
