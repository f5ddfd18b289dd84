"""Load the C form of sweeps: from the wheel, from an editable install, or from what a user had built."""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import torch

from passes.errors import RewriteError
from rewriter.engine.sweeps.build_library import FOLDER, OPENMP, build, name_of

#: Whether steps run in C: if there is a library, never, or also if it has to be built first.
Compiled = bool | Literal["build"]
_TYPES = {torch.float32: "float", torch.float64: "double"}
_LOCK = threading.Lock()
_STEP = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_ARGUMENTS = dict.fromkeys(("lstm", "gru", "program", "lstm_players", "gru_players"), _STEP) | dict.fromkeys(
    ("lstm_run", "gru_run"), (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
)
_wanted: ContextVar[Compiled] = ContextVar("rewriter_compiled", default=True)


@contextmanager
def compiling(wanted: Compiled) -> Iterator[None]:
    """Say whether this thread may run anything of the library, and whether it may build it.

    Example:
        >>> with compiling(False):
        ...     functions_for(torch.zeros(1)) is None
        True

    """
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def checked(wanted: Any) -> Compiled:
    """Return what is wanted.

    Raises:
        RewriteError: for anything but True, False and ``"build"``.

    """
    if wanted is True or wanted is False or wanted == "build":
        return wanted  # type: ignore[no-any-return]
    raise RewriteError(f"compiled: expected True, False or 'build', got {wanted!r}")


def has_form(like: torch.Tensor) -> bool:
    """Whether there can be a library for tensors of a device and a dtype.

    Example:
        >>> has_form(torch.zeros(1)), has_form(torch.zeros(1).half())
        (True, False)

    """
    return like.device.type == "cpu" and like.dtype in _TYPES


def functions_for(like: torch.Tensor) -> Mapping[str, Any] | None:
    """Return the functions of the library for tensors of a device and a dtype; None where there is none."""
    wanted = _wanted.get()
    if not wanted or not has_form(like):
        return None
    with _LOCK:
        return loaded(like.dtype, wanted == "build")


@functools.cache
def loaded(dtype: torch.dtype, may_build: bool) -> Mapping[str, Any] | None:
    """Load the library of a dtype; None if there is none that this process can load."""
    level, real = torch.backends.cpu.get_cpu_capability(), _TYPES[dtype]
    folders = [FOLDER, *filter(None, [_cache()])]
    for folder in folders:
        if may_build and folder != FOLDER:
            build(folder, real, level)
        for threads in OPENMP:
            found = _loaded(folder / name_of(real, level, threads))
            if found is not None:
                return found
    return None


def _loaded(path: Path) -> Mapping[str, Any] | None:
    try:
        library = ctypes.CDLL(str(path))
        functions = {name: getattr(library, name) for name in _ARGUMENTS}
    except (OSError, AttributeError):
        return None
    for name, types in _ARGUMENTS.items():
        functions[name].argtypes, functions[name].restype = types, None
    return functions


def _cache() -> Path | None:
    """Return the user's directory of libraries, unless others may write to it: what is there will run."""
    path = cache_folder()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError:
        return None
    if hasattr(os, "getuid") and (
        found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        return None
    return path


def cache_folder() -> Path:
    """Return the directory of what a user has built.

    Example:
        >>> cache_folder().name
        'rnn-rewriter'

    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnn-rewriter"


def how_to_mend(*, built: bool) -> str:
    """Say how explanations get the library; ``built`` if that was tried in vain."""
    if built:
        return (
            "compiled='build' found no C compiler that could build the library ($CC, cc, gcc or clang), or "
            f"{cache_folder()} can be written to by others; mend that, or pass compiled=False"
        )
    return (
        "the package was installed without its library, as where no C compiler is. Install a wheel of this "
        "platform, or the package again where a C compiler is, or pass compiled='build', which has the "
        f"system's C compiler build it once, into {cache_folder()}; compiled=False says that this is meant"
    )
