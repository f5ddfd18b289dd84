"""Cells whose run and step with two players are functions of the library, which are faster than a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.compiled import CompiledRecording, compiled_cell
from rewriter.engine.sweeps.program import Written
from rewriter.engine.sweeps.sweep import Kept, Recording, State, fused


class _Form(NamedTuple):
    """What the functions of a cell expect.

    Args:
        run: the name of that which runs it.
        step: and of that which turns a step back.
        sigmoids: which of the gates are one; the others are a tanh.

    """

    run: str
    step: str
    sigmoids: tuple[bool, ...]


_FORMS: Mapping[type[nn.Module], _Form] = {
    LSTMCellAtoms: _Form("lstm", "lstm_players", (True, True, False, True)),
    GRUCellAtoms: _Form("gru", "gru_players", (True, True, False)),
}


class TwoPlayerCell(Written):
    """Which rows the function of a cell takes: both parts of the gates, the last state, and what gates gave.

    Those of an LSTM are followed by the new cell state and its tanh.

    Args:
        step: the cell's graph.
        form: of the cell.

    """

    def __init__(self, step: CellGraph, form: _Form) -> None:
        super().__init__(step)
        self.form, self.function = form, form.step
        self.once = self.part = 0
        gates = range(step.gates)
        self.kept = [*((0, j) for j in gates), *((1, j) for j in gates), (2, 0), *((3, j) for j in gates)]
        if len(step.old) == 2:
            self.kept += [(4, 0), (5, 0)]

    def record(self, steps: Recurrence, gates: Tensor) -> Recording | None:
        """Begin a forward pass by the library, None where it has none."""
        size = gates.shape[-1] // self.step.gates
        cell = compiled_cell(self.form.run, gates, size)
        if cell is None:
            return None
        return _Recording(CompiledRecording(cell, steps, gates), self.form.sigmoids, steps, gates)


class _Recording(Recording):
    """A forward pass by the library; what each step took is made of its states, for all steps together."""

    def __init__(
        self, run: CompiledRecording, sigmoids: Sequence[bool], steps: Recurrence, gates: Tensor
    ) -> None:
        self._run, self._sigmoids, self._gates = run, sigmoids, gates
        self._weight, self._bias = fused(steps.hidden)
        self._taken: list[State] = [()] * gates.shape[0]

    def advance(self, t: int, state: State) -> State:
        """See the base class."""
        self._taken[t] = state
        return self._run.advance(t, state)

    def kept(self) -> Kept:
        """See the base class."""
        before, after, *_ = self._run.kept()
        hidden, *_ = old = [torch.stack(each) for each in zip(*self._taken, strict=True)]
        count = len(self._sigmoids)
        size = self._gates.shape[-1] // count
        gates = after[..., : count * size].clone()
        for sigmoid, gate in zip(self._sigmoids, gates.chunk(count, -1), strict=True):
            if sigmoid:
                gate.add_(1).div_(2)
        squashed = [each[..., count * size :] for each in (before, after)] if len(old) == 2 else []
        return (
            self._gates.clone(),
            nn.functional.linear(hidden, self._weight, self._bias),
            old[-1],
            gates,
            *squashed,
        )


def cell_of_the_library(step: CellGraph) -> TwoPlayerCell | None:
    """Return what the functions of a cell take, None for a cell without any.

    Example:
        >>> from passes.recurrent.cells import GRUCellAtoms
        >>> cell_of_the_library(CellGraph(GRUCellAtoms())).function
        'gru_players'

    """
    form = _FORMS.get(type(step.cell))
    return None if form is None else TwoPlayerCell(step, form)
