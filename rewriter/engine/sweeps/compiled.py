"""Build and call the C form of a step of the sweep: one pass over memory where torch needs about thirteen.

The compiler of the system builds ``sweep.c`` once, for the instructions that torch found
in the processor; the library is kept in the user's cache directory. Without a compiler there is none of
this, and torch's operations compute the same.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms
from passes.recurrent.recurrence import Recurrence
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

_SOURCE = Path(__file__).with_name("sweep.c")
# NaN and infinity must stay what they are: no -ffast-math.
_FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_OPENMP = (("-fopenmp",), ("-fopenmp-simd",))
_INSTRUCTIONS = {"AVX2": "-march=x86-64-v3", "AVX512": "-march=x86-64-v4"}
_TYPES = {torch.float32: "float", torch.float64: "double"}
_SECONDS = 60
# The slopes of one pair are on the stack.
_WIDEST = 4096
_LOCK = threading.Lock()

_INTS = "outputs", "references", "rows", "size", "rows_x0", "threads"
_ARRAYS = ("before", "after", "partner", "passed", "before0", "after0", "partner0", "passed0")
_WRITTEN = ("d_h", "d_c", "gates")


def _struct(real: Any) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in _INTS]
    fields += [(name, ctypes.c_void_p) for name in ("facing", *_ARRAYS, *_WRITTEN)]
    return type("Sweep", (ctypes.Structure,), {"_fields_": [*fields, ("least", real)]})


_STRUCTS = {torch.float32: _struct(ctypes.c_float), torch.float64: _struct(ctypes.c_double)}


_RUN = type(
    "Run",
    (ctypes.Structure,),
    {
        "_fields_": [("rows", ctypes.c_int64), ("size", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in (*_ARRAYS[:4], "h", "c", "from_x", "from_h")]
    },
)
_STEP = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_ARGUMENTS = {"lstm": _STEP, "gru": _STEP} | dict.fromkeys(
    ("lstm_run", "gru_run"), (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
)


_wanted = ContextVar("rewriter_compiled", default=True)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Say whether this thread may run anything of this module.

    Example:
        >>> with compiling(False):
        ...     compiled_cell("lstm", torch.zeros(1), 4) is None
        True

    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


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
        rows_x0 = swept.x0[0].shape[1]
        # For each pair the row of the reference.
        numbers = torch.arange(rows_x0, device=gates.device).view(1, -1, 1)
        _, facing = swept.rows(swept.x[0][:1, :, :1], numbers)
        inside = swept.batch // (swept.outer * swept.samples)
        self._facing = facing.expand(1, swept.references, swept.outer, swept.samples, inside, 1).contiguous()
        ints = (
            *(swept.outputs, swept.references, swept.batch, gates.shape[-1], rows_x0),
            torch.get_num_threads(),
        )
        addresses = [part.data_ptr() for side in ([self._facing], *self._held) for part in side]
        self._sweep = _STRUCTS[gates.dtype](*ints, *addresses, faded(gates.dtype))
        self._at = ctypes.byref(self._sweep)
        self._step = cell.step

    def __call__(self, t: int, place: int) -> None:
        """Run step ``t``; its gates go to ``place``."""
        self._step(self._at, t, place)


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
    name = _CELLS.get(type(steps.cell), "")
    weight, _ = fused(steps.hidden)
    cell = compiled_cell(name, like, weight.shape[0] // steps.gates)
    return None if cell is None else CompiledSweep(cell)


def compiled_cell(name: str, like: Tensor, size: int) -> CompiledCell | None:
    """Return the C functions of a cell, or None where there is none.

    Args:
        name: ``"lstm"`` or ``"gru"``; ``""`` has none.
        like: a tensor of the device and the dtype.
        size: of the cell.

    """
    if (
        not name
        or not _wanted.get()
        or like.device.type != "cpu"
        or like.dtype not in _TYPES
        or not 0 < size <= _WIDEST
    ):
        return None
    with _LOCK:
        loaded = _library(like.dtype)
    return None if loaded is None else CompiledCell(name, loaded[name], loaded[f"{name}_run"])


@functools.cache
def _library(dtype: torch.dtype) -> Mapping[str, Any] | None:
    """Load the library, built if need be; None if that fails for any reason."""
    try:
        library = ctypes.CDLL(str(_built(_TYPES[dtype])))
        functions = {name: getattr(library, name) for name in _ARGUMENTS}
    except (OSError, AttributeError, RuntimeError, subprocess.SubprocessError):
        return None
    for name, types in _ARGUMENTS.items():
        functions[name].argtypes, functions[name].restype = types, None
    return functions


def _built(real: str) -> Path:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    instructions = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    flags = [*_FLAGS, f"-DREAL={real}", *([instructions] if instructions else [])]
    source = _SOURCE.read_bytes()
    key = hashlib.sha256("\0".join([compiler, *flags, source.decode()]).encode()).hexdigest()[:20]
    path = _cache() / f"sweep-{key}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        for openmp in _OPENMP:
            command = [compiler, *flags, *openmp, str(_SOURCE), "-o", str(made)]
            if not subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False).returncode:
                # Another process may do the same at the same time; either file will do.
                made.replace(path)
                return path
    raise OSError("the compiler failed")


def _cache() -> Path:
    """Return a directory that nobody else may write to: what lies there will be run."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "rnn-rewriter"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if hasattr(os, "getuid") and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(f"{path} can be written to by others")
    return path
