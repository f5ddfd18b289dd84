"""Find out whether a trace fixed something that the model decides anew in each call.

torch.fx follows one path through Python code. It stops with an error where a value decides the path,
but says nothing where an identity test, a type test, ``self.training``, a context manager, an
assignment to ``self`` or a random number does. So the code that really ran during a trace is read
afterwards, and a trace that met one of these is thrown away: the model then stays as the user wrote it.
"""

from __future__ import annotations

import dis
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch

_TYPE_TESTS = {"isinstance", "hasattr", "type", "callable", "issubclass", "is_tensor", "is_grad_enabled"}
_LIBRARY = tuple(os.path.dirname(os.path.abspath(path)) + os.sep for path in (torch.__file__, os.__file__))
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class RanCode:
    """The user's code that ran while :func:`watch` was active."""

    def __init__(self) -> None:
        self.places: dict[CodeType, str] = {}
        self.without_gradient: dict[str, str] = {}

    def hazards(self) -> dict[str, str]:
        """Return what a graph would have fixed, by the place where it ran."""
        found = dict(self.without_gradient)
        for code, place in self.places.items():
            reason = hazard(code)
            if reason is not None:
                found.setdefault(place, reason)
        return found


@contextmanager
def watch(where: Callable[[], str]) -> Iterator[RanCode]:
    """Collect the code objects of all Python functions outside torch and this package that run.

    Args:
        where: called when a function begins, to note its place.

    Example:
        >>> def forward(x, scale=None):
        ...     return x if scale is None else x * scale
        >>> with watch(lambda: "encoder") as ran:
        ...     y = forward(1)
        >>> list(ran.hazards())
        ['encoder']

    """
    ran = RanCode()
    gradients = torch.is_grad_enabled()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in ran.places or not _is_users(code.co_filename):
            return
        ran.places[code] = where()
        if torch.is_grad_enabled() != gradients:
            ran.without_gradient.setdefault(where(), f"{code.co_qualname} runs with gradients switched off")

    before = sys.getprofile()
    collects = gc.isenabled()
    # A collection would run other people's callbacks in the middle of the user's code.
    gc.disable()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()


def hazard(code: CodeType) -> str | None:
    """Return what in ``code`` a graph would fix, or None."""
    where = f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{{line}})"
    instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    line = code.co_firstlineno
    for k, each in enumerate(instructions):
        starts = each.starts_line
        if isinstance(starts, int) and not isinstance(starts, bool):
            line = starts
        found = _hazard_at(instructions, k)
        if found:
            return where.format(line=getattr(each, "line_number", None) or line) + f" {found}"
    return None


def _hazard_at(instructions: list[dis.Instruction], k: int) -> str | None:
    each = instructions[k]
    name, argument = each.opname, each.argval
    if "IF_NONE" in name or "IF_NOT_NONE" in name:
        return _identity_test(instructions[k - 1])
    if name == "IS_OP":
        return _identity_test(instructions[k - 2])
    if name in ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "DELETE_ATTR"):
        return f"assigns {argument}"
    if name == "PUSH_EXC_INFO":
        return "uses a with or try statement"
    if name.startswith("MATCH_"):
        return "uses a match statement"
    if name in ("LOAD_ATTR", "LOAD_METHOD") and argument == "training":
        return "reads training"
    if name in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD") and argument in _TYPE_TESTS:
        return None if _on_own_attribute(instructions[k + 1 : k + 5]) else f"calls {argument}(...)"
    return None


def _identity_test(operand: dis.Instruction) -> str | None:
    """An attribute of the module is the same in every call, a local variable need not be."""
    if operand.opname.startswith("LOAD_FAST") or operand.opname == "LOAD_DEREF":
        return f"tests the identity of {operand.argval}"
    return None


def _on_own_attribute(following: list[dis.Instruction]) -> bool:
    loads = [each for each in following if each.opname not in ("PUSH_NULL", "PRECALL")]
    return (
        len(loads) > 1
        and loads[0].argval == "self"
        and loads[1].opname in ("LOAD_ATTR", "LOAD_METHOD")
        and loads[1].argval != "training"
    )


def _is_users(filename: str) -> bool:
    if filename.startswith((_HERE, "<frozen")):
        return False
    # Site-packages may lie below the standard library's folder, and third parties' forwards count.
    inside = filename.removeprefix(_LIBRARY[1])
    if inside != filename and not inside.startswith("site-packages"):
        return False
    return not filename.startswith(_LIBRARY[0])
