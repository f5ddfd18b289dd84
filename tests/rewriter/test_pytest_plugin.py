"""The plugin fails where a proof fails, says why, and sums up what was proven."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

pytest_plugins = ["pytester"]

MODELS = """
import torch
from torch import nn

class Forecaster(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head, self.factor = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), factor
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1]) * self.factor

x, background = torch.randn(4, 5, 3), torch.randn(6, 5, 3)
"""
PROOFS = """
def test_same(assert_equivalent):
    assert assert_equivalent(Forecaster(), x).equal

def test_sums(assert_additive):
    assert assert_additive(Forecaster(), background, x).shape == (4, 5, 3, 2)

def test_file(assert_exportable, tmp_path):
    assert_exportable(Forecaster(), x, tmp_path / "here.onnx")
    assert (tmp_path / "here.onnx").exists()

def test_else():
    pass
"""
FAILURES = """
class Cut(Forecaster):
    def forward(self, x):
        return super().forward(x) + super().forward(x.detach())

def test_differs(assert_equivalent):
    assert_equivalent(Forecaster(), x, Forecaster(1.1))

def test_misses(assert_additive):
    assert_additive(Cut(), background, x, tolerance=1e-5)

def test_no_operators(assert_exportable):
    assert_exportable(Forecaster(), x, operators=["Gemm"])
"""


# One subprocess for each: torch warns on second imports within one process.
def run(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(MODELS + tests)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


def test_proofs_are_summed_up(pytester: pytest.Pytester) -> None:
    done = run(pytester, PROOFS, "-m", "rewriter", "--rewriter-report", "proven.json")
    done.assert_outcomes(passed=3, deselected=1)
    done.stdout.fnmatch_lines(
        ["*= rewriter =*", "1 equivalent, worst relative error *", "1 additive, *", "1 exportable, *"]
    )
    told = json.loads((pytester.path / "proven.json").read_text())
    assert [each["what"] for each in told] == ["equivalent", "additive", "exportable"]
    assert {each["model"] for each in told} == {"Forecaster"}
    # float32 over five steps.
    assert all(0 <= each["worst"] < 1e-5 for each in told)


def test_failures_say_why(pytester: pytest.Pytester) -> None:
    done = run(pytester, FAILURES, "--rewriter-report", "proven.md")
    done.assert_outcomes(failed=3)
    done.stdout.fnmatch_lines(["*EquivalenceError*differ*", "*detach*", "*Gemm*"])
    assert (pytester.path / "proven.md").read_text().startswith("| test | proven |")


class Odd(nn.Module):
    """In training mode, with dropout, and with a dictionary for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.drop, self.head = nn.GRU(3, 4, batch_first=True), nn.Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.head(self.drop(self.rnn(x)[0][:, -1]))}


@pytest.mark.parametrize("at", ["model", "layer"])
def test_sums_of_models_that_return_more_in_training_mode(at: str, assert_additive: Any) -> None:
    model = Odd()
    x, background = (
        np.random.default_rng(rows).normal(size=(rows, 5, 3)).astype(np.float32) for rows in (4, 6)
    )
    values = assert_additive((model, model.head) if at == "layer" else model, background, x, output="y")
    assert len(values) == 4
    assert model.training
