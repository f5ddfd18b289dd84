"""Stand-ins for ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from passes.recurrent.cells import cell_atoms_of
from passes.recurrent.gates import GateLinears
from passes.recurrent.layout import CellBegin, CellEnd
from passes.recurrent.recurrence import step
from passes.stand_in import StandIn, put_on_face, stand_in_class


class CellStandIn(StandIn):
    """What the three stand-ins share: one step of a cell that the user's code calls."""

    begin: CellBegin
    end: CellEnd
    input: nn.Module
    hidden: nn.Module
    step: nn.Module
    states = 1
    projection: nn.Linear | None = None

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return what the original returns for the same arguments."""
        begun = self.begin(input, hx, next(self.input.parameters()))
        state = tuple(begun[2 + k] for k in range(self.states))
        new = step(self, self.step, self.input(begun[0]), state)
        return cast("Tensor | tuple[Tensor, ...]", self.end(begun[1], *new))


class LSTMCellStandIn(CellStandIn, nn.LSTMCell):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.LSTMCell`` made of atoms."""

    states = 2


class GRUCellStandIn(CellStandIn, nn.GRUCell):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.GRUCell`` made of atoms."""


class RNNCellStandIn(CellStandIn, nn.RNNCell):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.RNNCell`` made of atoms."""


STAND_INS: dict[type[nn.RNNCellBase], type[CellStandIn]] = {
    nn.LSTMCell: LSTMCellStandIn,
    nn.GRUCell: GRUCellStandIn,
    nn.RNNCell: RNNCellStandIn,
}


def build_cell_stand_in(cell: nn.RNNCellBase, name: str, *, split: bool) -> CellStandIn:
    """Make the stand-in for ``cell``.

    Args:
        cell: an ``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``, or a subclass that wraps its forward.
        name: its qualified name in the user's model.
        split: one Linear per gate, with copied weights, instead of the shared fused ones.

    Example:
        >>> cell = nn.GRUCell(3, 2)
        >>> build_cell_stand_in(cell, "cell", split=False).hidden.weight is cell.weight_hh
        True

    """
    base = next(kind for kind in STAND_INS if isinstance(cell, kind))
    own = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    stand_in = put_on_face(stand_in_class(type(cell), STAND_INS[base]), cell, own, name)
    atoms = cell_atoms_of(cell)
    made = GateLinears(cell, atoms.gates, split=split)
    stand_in.begin = CellBegin(name, cell.input_size, cell.hidden_size, stand_in.states)
    stand_in.input = made.linear("i", "input")
    stand_in.hidden = made.linear("h", "hidden")
    stand_in.step = atoms
    stand_in.end = CellEnd()
    stand_in._paths.update(made.paths)
    return stand_in
