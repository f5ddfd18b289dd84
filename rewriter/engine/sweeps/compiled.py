"""Call the C form of a step of the sweep: one pass over memory where torch needs about thirteen."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.library import functions_for
from rewriter.engine.sweeps.sweep import (
    GateSlots,
    Kept,
    Recording,
    State,
    Step,
    Sweep,
    Swept,
    faded,
    fused,
)

# The slopes of one pair are on the stack.
_WIDEST = 4096

_INTS = "outputs", "references", "rows", "size", "rows_x0", "threads"
_ARRAYS = ("before", "after", "partner", "passed", "before0", "after0", "partner0", "passed0")
_WRITTEN = ("d_h", "d_c", "gates")


def _struct(real: Any) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in _INTS]
    fields += [(name, ctypes.c_void_p) for name in ("facing", *_ARRAYS, *_WRITTEN)]
    return type("Sweep", (ctypes.Structure,), {"_fields_": [*fields, ("least", real)]})


#: What the library takes of a sweep.
SWEEPS = {torch.float32: _struct(ctypes.c_float), torch.float64: _struct(ctypes.c_double)}


_RUN = type(
    "Run",
    (ctypes.Structure,),
    {
        "_fields_": [("rows", ctypes.c_int64), ("size", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in (*_ARRAYS[:4], "h", "c", "from_x", "from_h")]
    },
)


class CompiledSweep(Sweep):
    """The sweep of an LSTM or a GRU in C.

    A sigmoid is a tanh, ``s(a) = (1 + tanh(a / 2)) / 2``, so one chord formula serves all gates of a cell:
    the slope of tanh from ``b0`` to ``b`` is ``tanh(b - b0) / (b - b0) * (1 - u * u0)``, where ``u`` is
    ``tanh(b)``. It is multiplied by the mean of the other operand of the product behind the gate. Constants
    are folded into what is kept of the forward pass.

    Args:
        cell: of the library.

    """

    def __init__(self, cell: CompiledCell) -> None:
        self.cell = cell
        self.slots, self.direct = _FORMS[cell.name].slots, _FORMS[cell.name].direct

    def record(self, steps: Recurrence, gates: Tensor) -> Recording:
        """See the base class."""
        return CompiledRecording(self.cell, steps, gates)

    def stepper(
        self, swept: Swept, d: list[Tensor], gates: Tensor, ordered: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> Step:
        """See the base class."""
        return CompiledSteps(self.cell, swept, d, gates)


class CompiledSteps:
    """The steps of one sweep, in C.

    Args:
        cell: of the library.
        swept: the pairs; what is kept is before, after, partner, passed, each (T, rows, *).
        d: multipliers of the states, changed in place, (K, n, rows, H).
        gates: receives those of the gates, (places, K x n x rows, 4, H).

    """

    def __init__(self, cell: CompiledCell, swept: Swept, d: Sequence[Tensor], gates: Tensor) -> None:
        written = [*d, gates] if len(d) > 1 else [*d, *d, gates]
        # The library gets addresses only: what they belong to lives here.
        self._held = [each.contiguous() for each in (*swept.x, *swept.x0)], written
        self._facing = faced_rows(swept)
        addresses = [part.data_ptr() for side in self._held for part in side]
        self._sweep = sweep_struct(swept, self._facing, gates, addresses)
        self._at = ctypes.byref(self._sweep)
        self._step = cell.step

    def __call__(self, t: int, place: int) -> None:
        """Run step ``t``; its gates go to ``place``."""
        self._step(self._at, t, place)


def faced_rows(swept: Swept) -> Tensor:
    """Return for each pair the row of the reference, (n, B) in the order of the pairs."""
    x = swept.x[0]
    numbers = torch.arange(swept.x0[0].shape[1], device=x.device).view(1, -1, 1)
    _, facing = swept.rows(x[:1, :, :1], numbers)
    inside = swept.batch // (swept.outer * swept.samples)
    return facing.expand(1, swept.references, swept.outer, swept.samples, inside, 1).contiguous()


def sweep_struct(swept: Swept, facing: Tensor, gates: Tensor, addresses: Sequence[int]) -> ctypes.Structure:
    """Describe a sweep to the library, which gets addresses only; of those the last is that of the gates."""
    ints = swept.outputs, swept.references, swept.batch, gates.shape[-1], swept.x0[0].shape[1]
    unused = [0] * (len(_ARRAYS) + len(_WRITTEN) - len(addresses))
    return SWEEPS[gates.dtype](
        *ints, torch.get_num_threads(), facing.data_ptr(), *unused, *addresses, faded(gates.dtype)
    )


class _Form(NamedTuple):
    """What the C functions of a cell expect.

    Args:
        scales: what each gate's pre-activation is multiplied by, in torch's order of the gates.
        slots: where the multipliers of the gates go.
        direct: whether the state reaches the next step past the hidden weights.

    """

    scales: tuple[float, ...]
    slots: GateSlots
    direct: bool


# Multipliers of the GRU's gates: hidden ``n``, then ``r z n``.
_FORMS: Mapping[str, _Form] = {
    "lstm": _Form((0.5, 0.5, 1.0, 0.5), GateSlots(4), direct=False),
    "gru": _Form((0.5, 0.5, 1.0), GateSlots(4, slice(0, 3), slice(1, 4), (2, 0, 1)), direct=True),
}


class CompiledRecording(Recording):
    """The forward pass of an LSTM or a GRU, its activations in C.

    Args:
        cell: of the library.
        steps: the recurrence.
        gates: those of the input, (T, rows, gates x H).

    """

    def __init__(self, cell: CompiledCell, steps: Recurrence, gates: Tensor) -> None:
        self._lstm = cell.name == "lstm"
        scales = gates.new_tensor(_FORMS[cell.name].scales)
        size = gates.shape[-1] // len(scales)
        scale = scales.repeat_interleave(size)
        weight, bias = fused(steps.hidden)
        self._weight = (weight * scale.unsqueeze(-1)).T
        self._bias = None if bias is None else bias * scale
        gates = gates * scale
        if self._lstm and self._bias is not None:
            gates += self._bias
        length, rows, _ = gates.shape
        activations, passed = (5, 1) if self._lstm else (3, 2)
        self._kept = tuple(
            gates.new_empty(length, rows, count * size) for count in (*[activations] * 3, passed)
        )
        self._h = gates.new_empty(length, rows, size)
        self._c = gates.new_empty(length, rows, size) if self._lstm else self._h
        self._x = gates.contiguous()
        self._y = gates.new_empty(0 if self._lstm else rows, 3 * size)
        addresses = [each.data_ptr() for each in (*self._kept, self._h, self._c, self._x, self._y)]
        self._run = _RUN(rows, size, *addresses)
        self._at = ctypes.byref(self._run)
        self._step = cell.run
        self._states = self._h.unbind(0), self._c.unbind(0)
        self._gates = self._x.unbind(0)
        self._before = self._kept[0][..., : 4 * size].unbind(0)

    def advance(self, t: int, state: State) -> State:
        """See the base class."""
        if self._lstm:
            torch.addmm(self._gates[t], state[0], self._weight, out=self._before[t])
        elif self._bias is None:
            torch.mm(state[0], self._weight, out=self._y)
        else:
            torch.addmm(self._bias, state[0], self._weight, out=self._y)
        old = state[-1].contiguous()
        self._step(self._at, t, old.data_ptr())
        return tuple(each[t] for each in self._states[: len(state)])

    def kept(self) -> Kept:
        """See the base class."""
        return self._kept


class CompiledCell(NamedTuple):
    """The C functions of one kind of cell."""

    name: str
    step: Any
    run: Any


_CELLS: Mapping[type[nn.Module], str] = {LSTMCellAtoms: "lstm", GRUCellAtoms: "gru"}


def compiled_sweep(steps: Recurrence, like: Tensor) -> CompiledSweep | None:
    """Return the sweep in C of a recurrence, or None where there is none.

    Args:
        steps: the recurrence.
        like: a tensor of the device and the dtype.

    """
    cell = compiled_cell(_CELLS.get(type(steps.cell), ""), like, _size(steps))
    return None if cell is None else CompiledSweep(cell)


def has_c_form(steps: Recurrence) -> bool:
    """Whether there are C functions for the cell of a recurrence."""
    return type(steps.cell) in _CELLS and _size(steps) <= _WIDEST


def _size(steps: Recurrence) -> int:
    weight, _ = fused(steps.hidden)
    return weight.shape[0] // steps.gates


def compiled_cell(name: str, like: Tensor, size: int) -> CompiledCell | None:
    """Return the C functions of a cell, or None where there is none.

    Args:
        name: ``"lstm"`` or ``"gru"``; ``""`` has none.
        like: a tensor of the device and the dtype.
        size: of the cell.

    """
    if not name or not 0 < size <= _WIDEST:
        return None
    found = functions_for(like)
    return None if found is None else CompiledCell(name, found[name], found[f"{name}_run"])
