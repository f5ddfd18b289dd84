"""Build and call the C form of a step of the sweep: one pass over memory where torch needs about thirteen.

The compiler of the system builds ``_sweep.c`` once (about a second), for the instructions that torch found
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewriter.engine.sweeps.sweep import Hidden, Kept, Recording

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

_INTS = ("outputs", "references", "rows", "each", "size", "own", "first", "rows_x", "rows_x0", "threads")
_ARRAYS = ("before", "after", "partner", "passed", "before0", "after0", "partner0", "passed0")
_WRITTEN = ("d_h", "d_c", "gates")


def _struct(real: Any) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(name, ctypes.c_int64) for name in _INTS]
    fields += [(name, ctypes.c_void_p) for name in (*_ARRAYS, *_WRITTEN)]
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


def faded(dtype: torch.dtype) -> float:
    """Return the size below which a multiplier counts as zero.

    Multipliers fade as the sweep goes back in time. Below this number products with what is of the order
    of rounding are subnormal, which processors compute a hundred times slower.

    Example:
        >>> faded(torch.float32) < 1e-30
        True

    """
    info = torch.finfo(dtype)
    return info.tiny / info.eps


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


class CompiledSteps:
    """The steps of one sweep, in C.

    Args:
        cell: of the library.
        x: what the run of the samples kept: before, after, partner, passed, each (T, rows, *).
        x0: likewise, of the references.
        counts: outputs, references, rows, rows of each sample.
        own: whether each sample has references of its own.
        first: the first row of the references.
        d: multipliers of the states, changed in place, (K, n, rows, H).
        gates: receives those of the gates, (places, K x n x rows, 4, H).

    """

    def __init__(
        self,
        cell: CompiledCell,
        x: Sequence[Tensor],
        x0: Sequence[Tensor],
        counts: tuple[int, int, int, int],
        own: bool,
        first: int,
        d: Sequence[Tensor],
        gates: Tensor,
    ) -> None:
        written = [*d, gates] if len(d) > 1 else [*d, *d, gates]
        # The library gets addresses only: what they belong to lives here.
        self._held = [each.contiguous() for each in (*x, *x0)], written
        ints = (*counts, gates.shape[-1], int(own), first, x[0].shape[1], x0[0].shape[1])
        addresses = [each.data_ptr() for part in self._held for each in part]
        self._sweep = _STRUCTS[gates.dtype](*ints, torch.get_num_threads(), *addresses, faded(gates.dtype))
        self._at = ctypes.byref(self._sweep)
        self._step = cell.step

    def __call__(self, t: int, place: int) -> None:
        """Run step ``t``; its gates go to ``place``."""
        self._step(self._at, t, place)


class CompiledRecording(Recording):
    """The forward pass of an LSTM or a GRU, its activations in C.

    Args:
        cell: of the library.
        gates: those of the input with the biases, scaled, (T, rows, gates x H).
        size: of the cell.

    """

    def __init__(self, cell: CompiledCell, gates: Tensor, size: int) -> None:
        length, rows, _ = gates.shape
        self._lstm = cell.name == "lstm"
        activations, passed = (5, 1) if self._lstm else (3, 2)
        kept = [gates.new_empty(length, rows, count * size) for count in (*[activations] * 3, passed)]
        self._kept = Kept(*kept)
        self._h = gates.new_empty(length, rows, size)
        self._c = gates.new_empty(length, rows, size) if self._lstm else self._h
        self._x = gates.contiguous()
        self._y = gates.new_empty(0 if self._lstm else rows, 3 * size)
        addresses = [each.data_ptr() for each in (*kept, self._h, self._c, self._x, self._y)]
        self._run = _RUN(rows, size, *addresses)
        self._at = ctypes.byref(self._run)
        self._step = cell.run
        self._states = self._h.unbind(0), self._c.unbind(0)
        self._before = self._kept.before[..., : 4 * size].unbind(0)

    def advance(
        self, t: int, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See the base class."""
        if self._lstm:
            torch.addmm(x_gates, state[0], hidden.weight, out=self._before[t])
        elif hidden.bias is None:
            torch.mm(state[0], hidden.weight, out=self._y)
        else:
            torch.addmm(hidden.bias, state[0], hidden.weight, out=self._y)
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
