"""Loops over cells of users' own become one Scan each, which onnxruntime runs as torch runs the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from rewriter import RewriteError, decompose, export_onnx
from rewriter.onnx import export
from tests.rewriter.engine.loops.apart import APART
from tests.rewriter.engine.loops.models import INPUTS, ROLLED, STEPS, LayerNormLSTM

# One that every kind of node comes from: norms, a sequence taken apart before, a length that the code
# fixes, and a loop from the last step on with a head at each.
SCANS = {"layer-norm LSTM": 1, "unbound": 1, "every second step": 1, "backwards": 1}


def weights_of(path: Path) -> list[np.ndarray]:
    found = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return [each for each in found if each.dtype == np.float32 and each.size > 1]


@pytest.mark.parametrize("name", SCANS)
def test_a_loop_is_a_scan(name: str, tmp_path: Path) -> None:
    model = ROLLED[name][0]().eval()
    path = tmp_path / "m.onnx"
    report = export_onnx(model, torch.randn(4, STEPS, INPUTS), path, loops=True)
    assert report.operators["Scan"] == SCANS[name]
    # Float32: some roundings of numbers of size 1.
    assert max(report.errors.values()) < 1e-6
    weights = weights_of(path)
    stored = {(each.shape, each.tobytes()) for each in weights}
    assert len(stored) == len(weights)
    assert sum(each.size for each in weights) <= sum(each.numel() for each in model.parameters())


class Cell(nn.Module):
    """Stands for one that is replaced by another that computes the same."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(h))


class Rewritten(nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = self.cell.x(x) + self.cell.h(h)
        return 2 * torch.sigmoid(2 * a) - 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(STEPS):
            h = self.cell(x[:, t], h)
        return h


def test_a_cell_that_is_replaced(tmp_path: Path) -> None:
    decomposed = decompose(Net().eval(), replacements={Cell: Rewritten})
    report = export_onnx(decomposed, torch.randn(4, STEPS, INPUTS), tmp_path / "m.onnx", loops=True)
    assert (report.operators["Scan"], report.operators["Sigmoid"]) == (1, 1)
    assert "Tanh" not in report.operators
    assert max(report.errors.values()) < 1e-6


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = LayerNormLSTM().train()
    before = [(name, id(each), each.training) for name, each in model.named_modules()]
    export_onnx(model, torch.randn(4, STEPS, INPUTS), tmp_path / "m.onnx", loops=True)
    assert [(name, id(each), each.training) for name, each in model.named_modules()] == before


@pytest.mark.parametrize("name", ["backwards", "select"])
def test_a_file_refuses_sequences_that_the_model_refuses(name: str, tmp_path: Path) -> None:
    model = (ROLLED | APART)[name][0]().eval()
    path = tmp_path / "m.onnx"
    report = export_onnx(model, torch.randn(4, STEPS, INPUTS), path, loops=True)
    assert report.operators["Scan"] == 1
    session = onnxruntime.InferenceSession(path)
    longer = torch.randn(3, STEPS + 2, INPUTS)
    (got,) = session.run(None, {session.get_inputs()[0].name: longer.numpy()})
    np.testing.assert_allclose(got, model(longer).detach(), rtol=0, atol=1e-6)
    with pytest.raises(IndexError):
        model(longer[:, : STEPS - 1])
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {session.get_inputs()[0].name: longer[:, : STEPS - 1].numpy()})


def test_a_loop_that_has_no_scan_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RewriteError("a step with something that has no form in a Scan")

    monkeypatch.setattr(export, "exported_step", refuse)
    model = ROLLED["all of a part"][0]().eval()
    report = export_onnx(model, torch.randn(4, STEPS, INPUTS), tmp_path / "m.onnx", loops=True)
    assert "Scan" not in report.operators
    assert report.operators["Tanh"] == STEPS
    assert max(report.errors.values()) < 1e-6
