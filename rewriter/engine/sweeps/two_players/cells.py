"""Cells whose step with two players is a function of the library, which is faster than a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import fx, nn

from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.program import Written


class _Form(NamedTuple):
    """What the function of a cell expects.

    Args:
        function: its name.
        given: atoms whose results are the last rows.
        taken: the atom of these before whose result that which it takes is a row.

    """

    function: str
    given: tuple[str, ...]
    taken: str = ""


_FORMS: Mapping[type[nn.Module], _Form] = {
    LSTMCellAtoms: _Form(
        "lstm_players",
        (
            "input_gate_sigmoid",
            "forget_gate_sigmoid",
            "cell_gate_tanh",
            "output_gate_sigmoid",
            "cell_state_tanh",
        ),
        "cell_state_tanh",
    ),
    GRUCellAtoms: _Form("gru_players", ("reset_gate_sigmoid", "update_gate_sigmoid", "new_gate_tanh")),
}


class TwoPlayerCell(Written):
    """Which rows the function of a cell takes: both parts of the gates, the last state, what atoms gave.

    Args:
        step: the cell's graph.
        form: of the cell.

    """

    def __init__(self, step: CellGraph, form: _Form) -> None:
        super().__init__(step)
        self.function = form.function
        self.once = self.part = 0
        first, gates = len(step.kept), range(step.gates)
        self.kept = [(first + side, j) for side in (0, 1) for j in gates]
        self.kept.append((first + 1 + len(step.old), 0))
        atoms = {str(node.target): node for node in step.atoms}
        nodes: list[fx.Node] = []
        for name in form.given:
            nodes += [*atoms[name].all_input_nodes, atoms[name]] if name == form.taken else [atoms[name]]
        self.kept += [(step.kept.index(node), 0) for node in nodes]


def cell_of_the_library(step: CellGraph) -> TwoPlayerCell | None:
    """Return what the function of a cell takes, None for a cell without one.

    Example:
        >>> from passes.recurrent.cells import GRUCellAtoms
        >>> cell_of_the_library(CellGraph(GRUCellAtoms())).function
        'gru_players'

    """
    form = _FORMS.get(type(step.cell))
    return None if form is None else TwoPlayerCell(step, form)
