"""Steps in fewer operations compute what they computed."""

from __future__ import annotations

import operator
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from passes.leaves import Mul, SigmoidAtom, TanhAtom
from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms, RNNCellAtoms
from passes.recurrent.recurrence import State
from rewriter import export_onnx
from rewriter.onnx.recurrences.deferred import DeferredRecurrence, Step
from rewriter.onnx.recurrences.packed_steps import packed
from tests.support.exports import check_against_torch


class Coupled(nn.Module):
    """A cell of one's own: both kinds of neighbours, a part that is used twice, and other orders."""

    states, gates = 1, "abcd"

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = SigmoidAtom(), SigmoidAtom(), SigmoidAtom(), TanhAtom()
        self.mul = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        a, b, c, d = x.chunk(4, -1)
        p, q, r, s = h_gates.chunk(4, -1)
        second = self.two(q + b)
        return (self.mul(self.one(a + p) + h, self.four(d + r)) + self.three(c + s) + second + d,)


CELLS: dict[str, tuple[Any, Counter[str]]] = {
    "LSTM": (LSTMCellAtoms(), Counter(Sigmoid=2, Tanh=2, Add=2)),
    "GRU": (GRUCellAtoms(), Counter(Sigmoid=1, Tanh=1, Add=3)),
    "RNN": (RNNCellAtoms("relu"), Counter(ReLU=1, Add=1)),
    "of one's own": (Coupled(), Counter(Sigmoid=2, Tanh=1, Add=7)),
}


def kinds_of(graph: fx.Graph, body: nn.Module) -> Counter[str]:
    found: Counter[str] = Counter(Add=sum(node.target is operator.add for node in graph.nodes))
    for node in graph.nodes:
        if node.op == "call_module":
            found[type(body.get_submodule(str(node.target))).__name__.removesuffix("Atom")] += 1
    return found


@pytest.mark.parametrize("name", CELLS)
def test_numbers_are_the_same_and_operations_fewer(name: str) -> None:
    cell, expected = CELLS[name]
    width, gates = 3, 3 * len(str(cell.gates))
    deferred = DeferredRecurrence(Step(None, nn.Linear(width, gates), cell, None), 0, name)
    before = str(deferred.graph)
    made = packed(deferred.graph, deferred.body, deferred.widths([gates] + [width] * cell.states))
    assert str(deferred.graph) == before
    made.lint()
    found = kinds_of(made, deferred.body)
    assert {kind: found[kind] for kind in expected} == expected
    given = [torch.randn(4, gates), *(torch.randn(4, width) for _ in range(cell.states))]
    with torch.no_grad():
        states = [fx.Interpreter(deferred.body, graph=graph).run(*given) for graph in (deferred.graph, made)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_both_directions_are_one_scan(tmp_path: Path, kind: Any, bias: bool) -> None:
    model = kind(3, 4, 2, bidirectional=True, bias=bias)
    report = export_onnx(model, torch.randn(5, 2, 3), tmp_path / "m.onnx", loops=True)
    assert report.operators["Scan"] == 2
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(9, 3, 3))


class Others(nn.Module):
    """Two directions that are no pair: of other sizes, one after the other, of one layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.after = nn.GRU(3, 4), nn.GRU(3, 5), nn.GRU(9, 5)
        self.both = nn.RNN(3, 2, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        backwards, _ = self.large(x.flip(0))
        out, _ = self.after(torch.cat([self.small(x)[0], backwards], -1))
        return torch.cat([out, self.both(x)[0], self.both(out[..., :3])[0]], -1)


def test_other_scans_stay_as_they_are(tmp_path: Path) -> None:
    model = Others()
    report = export_onnx(model, torch.randn(5, 2, 3), tmp_path / "m.onnx", loops=True)
    # Weights that two Scans take are stored once, so the layer that is called twice has four.
    assert report.operators["Scan"] == 3 + 4
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(9, 3, 3))


class Twice(nn.Module):
    """A layer that is called twice, and one whose outputs nobody takes."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3, batch_first=True, bias=bias)
        self.last = nn.RNN(3, 4, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, state = self.lstm(x)
        out, _ = self.lstm(out, state)
        return out, self.last(out.transpose(0, 1))[1]


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_biases_and_weights_wherever_they_are_used(tmp_path: Path, loops: bool, bias: bool) -> None:
    model = Twice(bias)
    report = export_onnx(model, torch.randn(2, 5, 3), tmp_path / "m.onnx", loops=loops)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 5, 3))
    assert report.operators["Gemm"] == (3 if loops else 15)
    if loops:
        # The outputs of the last layer are not written.
        assert report.operators["Identity"] == 2
