"""Find out whether a trace fixed something that the model decides anew in each call.

torch.fx follows one path through Python code. It stops with an error where a value decides the path,
but says nothing where an identity test, a type test, ``self.training``, a context manager, an
assignment or a random number does. So the code that really ran during a trace is read afterwards, and a
trace that met one of these is thrown away: the model then stays as the user wrote it. What a module is
built from (submodules, parameters, settings that only ``__init__`` assigns) counts as the same in every
call, as it does for torch.fx.
"""

from __future__ import annotations

import dis
import gc
import os
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from passes.user_code.source import TORCH, is_users

_TYPE_TESTS = {"isinstance", "hasattr", "type", "callable", "issubclass", "is_tensor", "is_grad_enabled"}
# Torch's own Python code that decides like a user's; the rest of torch hands a proxy on at once.
_AUDITED = tuple(os.path.join(TORCH, "nn", folder, "") for folder in ("modules", "utils"))
_NOT_AUDITED = tuple(os.path.join(TORCH, "nn", "modules", name) for name in ("module.py", "container.py"))


class RanCode:
    """The user's code that ran while :func:`watch` was active."""

    def __init__(self) -> None:
        self.places: dict[CodeType, tuple[str, type | None]] = {}
        self.modes: dict[str, str] = {}

    def hazards(self, recorded: Container[tuple[CodeType, int]] = ()) -> dict[str, str]:
        """Return what a graph would have fixed, by the place where it ran.

        Args:
            recorded: instructions that assigned to an item and became a node of the graph.

        """
        found = dict(self.modes)
        for code, (place, owner) in self.places.items():
            reason = hazard(code, owner, recorded)
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
    modes = _modes()

    def note(frame: FrameType, event: str, _: Any) -> None:  # pragma: no cover -- nothing is traced in it
        code = frame.f_code
        if event != "call" or code in ran.places or not _is_audited(code.co_filename):
            return
        owner = frame.f_locals.get("self")
        ran.places[code] = where(), type(owner) if isinstance(owner, nn.Module) else None
        if _modes() != modes:
            reason = f"{code.co_qualname} runs under a decorator that switches gradients or autocast"
            ran.modes.setdefault(where(), reason)

    before = sys.getprofile()
    collects = gc.isenabled()
    # A collection would run other people's callbacks in the middle of the user's code.
    gc.disable()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(None)
        if hasattr(before, "enable"):
            # A profiler written in C, such as cProfile's.
            before.enable()  # type: ignore[union-attr]
        else:
            sys.setprofile(before)
        if collects:
            gc.enable()


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )


def hazard(
    code: CodeType, owner: type | None = None, recorded: Container[tuple[CodeType, int]] = ()
) -> str | None:
    """Return what in ``code`` a graph would fix, or None.

    Args:
        code: a function that ran.
        owner: the class of its ``self``, if that is a module.
        recorded: instructions that a graph has.

    """
    state = assigned_outside_init(owner) if owner is not None else frozenset()
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _NO_OPERATION]
    line = code.co_firstlineno
    for k, each in enumerate(instructions):
        if isinstance(each.starts_line, int) and not isinstance(each.starts_line, bool):
            line = each.starts_line
        found = _hazard_at(instructions, k, state)
        if found and (code, each.offset) not in recorded:
            at = getattr(each, "line_number", None) or line
            return f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{at}) {found}"
    return None


_NO_OPERATION = {"CACHE", "PUSH_NULL", "PRECALL", "NOP", "NOT_TAKEN", "TO_BOOL", "EXTENDED_ARG"}


def _hazard_at(instructions: list[dis.Instruction], k: int, state: frozenset[str]) -> str | None:
    each = instructions[k]
    name, argument = each.opname, each.argval
    if "IF_NONE" in name or "IF_NOT_NONE" in name:
        return None if _is_setting(instructions[:k]) else "tests whether a value is None"
    if name == "IS_OP":
        return None if _is_setting(instructions[: k - 1]) else "tests the identity of a value"
    if name in ("STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF", "DELETE_ATTR"):
        return f"assigns {argument}"
    if name == "STORE_SUBSCR":
        return "assigns to an item"
    if name == "PUSH_EXC_INFO":
        return "uses a with or try statement"
    if name.startswith("MATCH_"):
        return "uses a match statement"
    if name in ("LOAD_ATTR", "LOAD_METHOD"):
        if argument == "training":
            return "reads training"
        if argument in state:
            return f"reads {argument}, which a method assigns"
        if argument in ("__class__", "is_scripting"):
            return None if argument == "is_scripting" else "reads __class__"
    # ``x.type(dtype)`` is a tensor's method, and asks for nothing.
    method = name in ("LOAD_ATTR", "LOAD_METHOD") and argument == "type"
    if name.startswith("LOAD_") and argument in _TYPE_TESTS and not method:
        following = instructions[k + 1 : k + 3]
        if argument in ("isinstance", "hasattr") and _is_setting(following):
            return None
        return f"calls {argument}(...)"
    return None


def _is_setting(loads: list[dis.Instruction]) -> bool:
    """Whether the last two instructions load an attribute of ``self``, the same in every call."""
    if len(loads) < 2:
        return False
    owner, attribute = loads[-2:]
    return (
        owner.opname.startswith("LOAD_FAST")
        and owner.argval == "self"
        and attribute.opname in ("LOAD_ATTR", "LOAD_METHOD")
    )


def assigned_outside_init(owner: type) -> frozenset[str]:
    """Return the attributes that a class's methods assign after construction: its state."""
    return frozenset(
        each.argval
        for cls in owner.__mro__
        if not cls.__module__.startswith(("torch.", "passes."))
        for name, method in vars(cls).items()
        if isinstance(method, FunctionType) and name != "__init__"
        for each in dis.get_instructions(method.__code__)
        if each.opname == "STORE_ATTR"
    )


def _is_audited(filename: str) -> bool:
    if filename.startswith(_AUDITED):
        return not filename.startswith(_NOT_AUDITED)
    # The code of a graph that the user made is the user's, too.
    return filename.startswith("<eval_with_key") or is_users(filename)
