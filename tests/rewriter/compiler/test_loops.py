"""Loops of the user's own over the steps: what they become, and that they share the model's parts."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from passes.graph.layers import layer_calls
from passes.leaves import Atom
from passes.recurrent.recurrence import Recurrence
from rewriter import Report, decompose, unroll


class Loop(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.x, self.h, self.norm = nn.Linear(3, 8), nn.Linear(2, 8), nn.LayerNorm(2)
        self.batch_norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 2)
        for t in range(self.steps):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.norm(c))
        return self.batch_norm(h)


class Cells(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell = nn.LSTMCell(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 2)
        for t in range(self.steps):
            h, c = self.cell(x[:, t], (h, c))
        return h


def graph_of(model: nn.Module) -> list[tuple[str, str, str, str]]:
    assert isinstance(model, fx.GraphModule)
    return [(node.op, node.name, str(node.target), str(node.args)) for node in model.graph.nodes]


def test_a_loop_is_written_out_with_and_without_example_inputs() -> None:
    x = torch.randn(4, 6, 3)
    for model in (Loop(6).eval(), Cells(6)):
        rolled, flat = decompose(model), decompose(model, x)
        assert graph_of(flat) == graph_of(rolled) == graph_of(unroll(rolled, x))
        assert layer_calls(flat) == layer_calls(rolled)
        assert [name for name, _ in flat.named_modules()] == [name for name, _ in rolled.named_modules()]
        assert type(flat).__name__ == type(model).__name__
        assert torch.equal(flat(x), rolled(x))
        assert Report.of(flat).operations == Report.of(rolled).operations
        assert {id(each) for each in flat.parameters()} == {id(each) for each in model.parameters()}


def test_each_step_adds_the_same_atoms_and_nodes() -> None:
    for build in (Loop, Cells):
        sizes = []
        for steps in (4, 5, 6):
            flat = decompose(build(steps).eval(), torch.randn(4, steps, 3))
            atoms = sum(isinstance(each, Atom) for each in flat.modules())
            sizes.append((len(graph_of(flat)), atoms))
        (nodes, atoms), (more_nodes, more_atoms), (most_nodes, most_atoms) = sizes
        assert more_nodes - nodes == most_nodes - more_nodes > 0
        assert more_atoms - atoms == most_atoms - more_atoms > 0


def test_what_is_decomposed_already_is_copied_and_left_as_it_is() -> None:
    x = torch.randn(4, 3, 3)
    for model in (Loop(3).eval(), nn.LSTM(3, 2, batch_first=True)):
        rolled = decompose(model)
        before = graph_of(rolled), str(Report.of(rolled)), [type(each) for each in rolled.modules()]
        flat = decompose(rolled, x)
        assert flat is not rolled
        assert before[0] == graph_of(rolled)
        assert before[2] == [type(each) for each in rolled.modules()]
        assert not {id(each) for each in flat.modules()} & {id(each) for each in rolled.modules()}


def test_example_inputs_run_on_copies_of_the_tensors() -> None:
    x = torch.randn(4, 3, 3)
    model = Loop(3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flat = decompose(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in flat.state_dict().items())
    assert all(each.training for each in flat.modules())


def test_no_hook_is_left_where_lengths_were_read() -> None:
    rolled = decompose(nn.LSTM(3, 2))
    flat = unroll(rolled, torch.randn(4, 1, 3))
    assert any(isinstance(each, Recurrence) for each in rolled.modules())
    assert not any(each._forward_pre_hooks for model in (rolled, flat) for each in model.modules())
