"""Where in the user's code the program is."""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
import traceback
from types import FrameType

import torch
from torch import fx, nn

import passes
from passes.errors import DeclinedError, RewriteError


def folder_of(file: str | None) -> str:
    """Return the folder in which a file lies, with a separator behind it.

    Example:
        >>> folder_of(torch.__file__).endswith(os.path.join("torch", ""))
        True

    """
    return os.path.join(os.path.dirname(os.path.abspath(str(file))), "")


# The root of the package, not the folder of this file, which may move.
OURS = folder_of(passes.__file__)
TORCH = folder_of(torch.__file__)
# Both packages of this distribution.
_OWN = (OURS, os.path.join(os.path.dirname(OURS[:-1]), "rewriter", ""))
_STANDARD = folder_of(os.__file__)
#: Functions of this package that run a model: what called them is not its code.
STARTS = {"_try_trace", "observe", "record_calls"}


def user_line() -> str:
    """Return file and line of the innermost function that is the user's, ``""`` if none is running.

    Example:
        >>> user_line()  # the caller is found only where a pass is running a model
        ''

    """
    frame: FrameType | None = sys._getframe(1)
    found = ""
    while frame is not None:
        code = frame.f_code
        name = code.co_filename
        if code.co_name in STARTS and name.startswith(OURS):
            return found
        if not found and is_users(name):
            found = f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_library(filename: str) -> bool:
    """Whether a file holds code of torch or of this package.

    Example:
        >>> is_library(torch.__file__), is_library("model.py")
        (True, False)

    """
    return filename.startswith((*_OWN, TORCH))


@functools.lru_cache(maxsize=4096)
def is_users(filename: str) -> bool:
    """Whether a file holds code that is neither torch's, nor Python's, nor of this package, nor made up.

    Example:
        >>> is_users(torch.__file__), is_users("model.py")
        (False, True)

    """
    if filename.startswith((*_OWN, TORCH, "<frozen", "<eval_with_key")):
        return False
    # Site-packages may lie below the standard library's folder.
    return not filename.startswith(_STANDARD) or "site-packages" in filename


def line_of(error: BaseException) -> str:
    """Return file and line of the user's innermost code that an error went through, ``""`` if none.

    Example:
        >>> line_of(ValueError())
        ''

    """
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if is_users(name):
            found = f"{os.path.basename(name)}:{line}"
        elif name.startswith("<eval_with_key"):
            found = _line_of_node(frame.f_locals.get("self"), line) or found
    return found


def with_line(error: RewriteError) -> None:
    """Put the user's line that an error came through at the end of its message, unless it has one.

    Example:
        >>> error = RewriteError("gru: expected a Tensor")
        >>> with_line(error)
        >>> str(error)
        'gru: expected a Tensor'

    """
    line = line_of(error)
    if line and not isinstance(error, DeclinedError) and not re.search(r"\.py:\d", str(error)):
        error.args = (f"{error} ({line})",)


def _line_of_node(graph: object, line: int) -> str:
    """Return the line of the user's that a line of a graph's code was made of."""
    nodes, begin = getattr(graph, "_lineno_map", None), getattr(graph, "_prologue_start", None)
    index = nodes.get(line - begin) if isinstance(nodes, dict) and isinstance(begin, int) else None
    if index is None or not isinstance(graph, fx.GraphModule):
        return ""
    node = next(itertools.islice(graph.graph.nodes, index, None), None)
    return "" if node is None else str(node.meta.get("source", ""))


_FUNCTORCH = os.path.join(TORCH, "_functorch", "")
_DYNAMO = os.path.join(TORCH, "_dynamo", "")


def why_not_followed(error: BaseException) -> str:
    """Say what a trace by torch.fx ended at.

    Example:
        >>> why_not_followed(ValueError("no"))
        'ValueError: no'

    """
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    line = line_of(error)
    at = f" ({line})" if line else ""
    if any(each.startswith(_DYNAMO) for each in files):
        return f"calls what torch.compile has compiled{at}, which torch.fx does not look into"
    if any(each.startswith(_FUNCTORCH) for each in files):
        return f"calls a transform of torch.func, such as vmap or grad{at}, which torch.fx does not look into"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def failed_in(error: BaseException) -> str:
    """Name the innermost module whose code an error came through.

    Example:
        >>> failed_in(ValueError())
        'the model itself'

    """
    running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [each for each in running if isinstance(each, nn.Module)]
    while len(modules) > 1 and type(modules[0]).__module__.startswith("passes.user_code"):
        # Ours, around a user's.
        del modules[0]
    names = {id(each): name for name, each in modules[0].named_modules()} if modules else {}
    known = [each for each in modules if names.get(id(each))]
    return f"{names[id(known[-1])]} ({type(known[-1]).__name__})" if known else "the model itself"


def where_failed(error: BaseException) -> str:
    """Say in which module an error was raised, with the line of the user's, for the end of a message.

    Example:
        >>> where_failed(ValueError())
        'in the model itself'

    """
    line = line_of(error)
    return f"in {failed_in(error)}{f' ({line})' if line else ''}"
