"""Paths through loops of users' own, code that goes by the number of rows, and functions of the output."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from rewriter import DeepExplainer
from rewriter.engine.path.points import Path
from rewriter.engine.sweeps.program import ProgramSteps
from tests.rewriter.engine.loops.models import GRUFromALayer, MinGRU, Peephole
from tests.rewriter.engine.test_output_functions import FUNCTIONS, Computed
from tests.rewriter.engine.test_programs import Cell
from tests.rewriter.engine.test_rows_in_code import RowByRow
from tests.support.models import gallery
from tests.support.stock import assert_same
from tests.support.walked import walked
from tests.support.watching import calls_noted

# Both in float64: sums of some thousand roundings.
EXACT = 1e-11
ASKED = Path(2, 2, 1, 3)
LOOPS = {kind.__name__: kind for kind in (Peephole, MinGRU, GRUFromALayer)}


def assert_walked(model: nn.Module, explainer: DeepExplainer, *shape: int) -> None:
    x, background = torch.randn(2, *shape).double(), explainer._data[0]
    got = explainer.shap_values(x, blocks=2, segments=2, seed=3)
    assert_same(got, walked(model, x, background, ASKED)[0], EXACT)
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).numpy()
    assert np.abs(got.sum(tuple(range(1, 1 + len(shape)))) - change).max() < EXACT


@pytest.mark.parametrize("name", LOOPS)
def test_loops_that_are_rolled(name: str) -> None:
    model = LOOPS[name]().double().eval()
    assert_walked(model, DeepExplainer(model, torch.randn(2, 6, 3).double()), 6, 3)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("compiled", [True, False])
def test_programs_in_c(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Cell(5).double().eval(), calls_noted(monkeypatch, ProgramSteps)
    explainer = DeepExplainer(model, torch.randn(2, 5, 3).double(), compiled=compiled)
    x = torch.randn(2, 5, 3).double()
    got = explainer.shap_values(x, blocks=2, segments=2, seed=3)
    assert bool(calls) == compiled
    assert_same(got, walked(model, x, explainer._data[0], ASKED)[0], EXACT)


def test_code_that_goes_by_the_number_of_rows() -> None:
    model = RowByRow("GRU").double().eval()
    assert_walked(model, DeepExplainer(model, torch.randn(2, 3, 4).double()), 3, 4)


class SomeRows(nn.Module):
    """Runs an operation on the first four rows alone, which two and three rows do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.gru(x)[0][:, -1])
        return torch.cat([torch.tanh(y[:4]), *(torch.tanh(y[i : i + 1]) for i in range(4, len(x)))])


def test_code_of_which_only_more_rows_tell_that_it_counts_them() -> None:
    model = SomeRows().double().eval()
    assert_walked(model, DeepExplainer(model, torch.randn(3, 5, 3).double()), 5, 3)


@pytest.mark.parametrize("name", ["softmax", "product"])
def test_functions_of_the_output(name: str) -> None:
    model, function = gallery.Classifier("GRU").double().eval(), FUNCTIONS[name]
    explainer = DeepExplainer(model, torch.randn(2, 5, 3).double(), output=function)
    assert_walked(Computed(model, function), explainer, 5, 3)
