"""The report and its errors."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from rewriter import EquivalenceError, RewriteError, assert_equivalent, check_equivalence, decompose
from tests.support.comparisons import Wraps


def test_the_report_is_json_that_any_reader_takes() -> None:
    wrong = Wraps(nn.Linear(2, 2), lambda y: y * math.nan)
    report = check_equivalence(nn.Linear(2, 2), wrong, torch.randn(3, 2))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["equal"] is False
    assert data["dtypes"] == ["float32", "float64"]
    (output,) = [e for e in data["comparisons"] if e["kind"] == "output" and e["dtype"] == "float32"]
    assert output["absolute"] is None
    assert output["problem"].endswith("the relative difference inf is above 1e-05")


def test_the_table_lists_states_and_sums_parameters_up() -> None:
    model = nn.LSTM(3, 4)
    text = str(check_equivalence(model, decompose(model), torch.randn(5, 2, 3)))
    lines = text.splitlines()
    assert lines[0] == "LSTM and LSTMStandIn are equal in float32 and float64, for 3 input(s)"
    assert lines[2].split()[:3] == ["dtype", "what", "where"]
    for place in ("output[0]", "output[1][0]", "output[1][1]"):
        assert sum(f" {place} at " in line for line in lines) == 2
    assert sum("parameter gradients, worst of 4" in line for line in lines) == 2


def test_assert_equivalent_raises_with_the_report_and_its_table() -> None:
    model, other = nn.GRU(3, 4), nn.GRU(3, 4)
    assert assert_equivalent(model, decompose(model), torch.randn(5, 3)) is None  # type: ignore[func-returns-value]
    with pytest.raises(EquivalenceError) as caught:
        assert_equivalent(model, other, torch.randn(5, 3))
    assert isinstance(caught.value, RewriteError)
    assert isinstance(caught.value, AssertionError)
    assert str(caught.value) == str(caught.value.report)
    assert "GRU and GRU are NOT equal" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).report == caught.value.report


def test_a_long_list_of_failures_is_cut_in_the_message_and_nowhere_else() -> None:
    model = nn.GRU(3, 4, 3)
    report = check_equivalence(model, nn.GRU(3, 4, 3), torch.randn(5, 3))
    assert len(report.failures) > 20
    # One of each kind and dtype: outputs, gradients of inputs and of parameters.
    assert str(report).count("different: float") == 4
    assert f"different: {len(report.failures) - 4} more, all in the report's failures" in str(report)
    assert len([each for each in report.to_dict()["comparisons"] if not each["equal"]]) == len(
        report.failures
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, nn.ReLU(), 1), {}, "original: expected a torch.nn.Module, got int"),
        ((nn.ReLU(), torch.relu, 1), {}, "rewritten: expected a torch.nn.Module, got builtin"),
        (
            (nn.ReLU(), nn.ReLU(), torch.ones(1)),
            {"seeds": 0},
            "seeds: expected a number of at least 1, got 0",
        ),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {}}, "tolerances: expected"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {torch.int64: 1.0}}, "tolerances: expected"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {torch.float32: math.nan}}, "tolerances:"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"gradient_factor": 0.5}, "gradient_factor: expected"),
        (
            (nn.GRU(3, 2), nn.GRU(3, 2), torch.ones(5, 4)),
            {},
            r"do not run through the original \(GRU\):\n  - float32",
        ),
        (
            (nn.GRU(3, 2), nn.GRU(3, 2), {"wrong": torch.ones(5, 3)}),
            {},
            "unexpected keyword argument 'wrong'",
        ),
    ],
)
def test_bad_input_is_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        check_equivalence(*arguments, **options)
