"""Programs of cells, which the library in C carries out, against the same sweeps by torch's operations."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms, RNNCellAtoms
from rewriter import DeepExplainer
from rewriter.engine.sweeps import linked_recurrence
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.program import Program, ProgramSteps, program_of
from tests.support.models import gallery
from tests.support.watching import assert_threads_change_nothing, calls_noted

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
# Relative to the largest attribution: sums of some hundred roundings.
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-13}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return calls_noted(monkeypatch, ProgramSteps)


class Cell(nn.Module):
    """Has what the library has operations for: all slopes, scales of features, sums with numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.x, self.h = nn.Linear(3, 3 * size), nn.Linear(size, 3 * size)
        self.peephole, self.head = nn.Parameter(torch.randn(size)), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.size, dtype=x.dtype)
        for t in range(5):
            i, g, r = (self.x(x[:, t]) + self.h(h)).chunk(3, 1)
            i = torch.sigmoid(i + self.peephole * c)
            c = i * torch.tanh(g) + (1 - i) * c - 0.3 * torch.relu(r)
            h = torch.tanh(c) / 2 + c * 0.1
        return self.head(h)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
# Rows of the library's parts, and some more.
@pytest.mark.parametrize("size", [1, 5, 128, 133])
def test_a_users_cell(size: int, dtype: torch.dtype, calls: list[int]) -> None:
    model = Cell(size).to(dtype).eval()
    x, background = torch.randn(3, 5, 3, dtype=dtype), torch.randn(4, 5, 3, dtype=dtype)
    fast = DeepExplainer(model, background).shap_values(x)
    assert set(calls) == set(range(5))
    calls.clear()
    plain = DeepExplainer(model, background, compiled=False).shap_values(x)
    assert not calls
    np.testing.assert_allclose(fast, plain, rtol=0, atol=CLOSE[dtype] * np.abs(plain).max())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("max_memory", [1, None])
def test_layers_of_torchs_as_programs(
    kind: str, max_memory: int | None, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The functions that are written for LSTM and GRU alone compute the same.
    model = gallery.Classifier(kind, num_layers=2, bidirectional=True).double()
    x, references = torch.randn(3, 6, 3).double(), torch.randn(3, 5, 6, 3).double()
    explainer = DeepExplainer(model, references[0], max_memory=max_memory)
    own = explainer.shap_values(x, references=references)
    shared = explainer.shap_values(x)
    monkeypatch.setattr(linked_recurrence, "compiled_sweep", lambda steps, like: None)
    explainer = DeepExplainer(model, references[0], max_memory=max_memory)
    calls.clear()
    for expected, given in ((own, references), (shared, None)):
        found = explainer.shap_values(x, references=given)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    assert calls


def test_threads_change_nothing() -> None:
    explainer = DeepExplainer(Cell(9).eval(), torch.randn(40, 5, 3))
    assert_threads_change_nothing(partial(explainer.shap_values, torch.randn(4, 5, 3)))


def test_what_the_library_has_no_operations_for_has_no_program() -> None:
    class Softsign(RNNCellAtoms):
        def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> tuple[Tensor]:
            return (nn.functional.softsign(x + h_gates),)

    assert DerivedSweep(Softsign("tanh")).program is None
    with pytest.raises(LookupError, match="has a rule that the library does not know"):
        Program(CellGraph(Softsign("tanh")))


def test_a_program_of_too_many_registers_is_left_to_torch() -> None:
    class Deep(RNNCellAtoms):
        def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> tuple[Tensor]:
            h = x + h_gates
            for _ in range(130):
                h = torch.tanh(h) + h / 2
            return (h,)

    assert DerivedSweep(Deep("tanh")).program is None


@pytest.mark.parametrize("cell", [LSTMCellAtoms(), GRUCellAtoms(), RNNCellAtoms("relu")], ids=type)
def test_each_register_is_written_before_it_is_read(cell: nn.Module) -> None:
    program = program_of(CellGraph(cell))
    assert program is not None
    written: set[int] = set()
    for k, (what, to, a, b, *_) in enumerate(program.operations):
        name = (*"tsrml",)[what] if what < 5 else "of registers"
        if name == "of registers":
            read = {a, b} if what in (7, 8) else {a}
            assert read - {-1} <= written
        if what < 11:
            written.add(to)
        assert (k < program.once) == (what < 4)
