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
import functools
import gc
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from passes.user_code.source import TORCH, is_users

_TYPE_TESTS = {"isinstance", "hasattr", "type", "callable", "issubclass", "is_tensor", "is_grad_enabled"}
# Torch's own Python code that decides like a user's; the rest of torch hands a proxy on at once.
_AUDITED = tuple(os.path.join(TORCH, "nn", folder, "") for folder in ("modules", "utils"))
_NOT_AUDITED = tuple(os.path.join(TORCH, "nn", "modules", name) for name in ("module.py", "container.py"))


class Ran(NamedTuple):
    """A function that ran in one place.

    Args:
        code: of the function.
        inside: the modules that were running, innermost last.
        owner: the class of its ``self``, if that is a module.

    """

    code: CodeType
    inside: tuple[str, ...]
    owner: type | None

    @property
    def place(self) -> str:
        """The innermost module that was running."""
        return self.inside[-1] if self.inside else ""


class RanCode:
    """The user's code that ran while :func:`watch` was active.

    Args:
        by_example: it ran for arguments that a graph takes alone, those that are None among them.

    """

    def __init__(self, *, by_example: bool = False) -> None:
        self.by_example = by_example
        self.ran: list[Ran] = []
        self.modes: dict[str, str] = {}

    def hazards(self, recorded: Container[tuple[CodeType, int]] = ()) -> dict[str, str]:
        """Return what a graph would have fixed, by the place where it ran first.

        Args:
            recorded: instructions that assigned to an item and became a node of the graph.

        """
        return self._found(self._read(recorded))

    def one_by_one(self, recorded: Container[tuple[CodeType, int]] = ()) -> Iterator[tuple[str, str]]:
        """Yield places, innermost first, and what is found there if nothing runs in those before."""
        read = self._read(recorded)
        while found := self._found(read):
            place = innermost(found)
            yield place, found[place]
            left = [each for each in read if place not in each[0].inside]
            if len(left) == len(read):
                return
            read = left

    def _read(self, recorded: Container[tuple[CodeType, int]]) -> list[tuple[Ran, str | None]]:
        each_once = {(id(each.code), each.owner): each for each in self.ran}
        told = {
            key: hazard(each.code, each.owner, recorded, by_example=self.by_example)
            for key, each in each_once.items()
        }
        return [(each, told[id(each.code), each.owner]) for each in self.ran]

    def _found(self, read: list[tuple[Ran, str | None]]) -> dict[str, str]:
        found = dict(self.modes)
        seen: set[int] = set()
        for each, reason in read:
            if id(each.code) not in seen:
                seen.add(id(each.code))
                if reason is not None:
                    found.setdefault(each.place, reason)
        return found


def innermost(found: Iterable[str]) -> str:
    """Return the place to blame first: the rest of the model can still become a graph.

    Example:
        >>> innermost(["", "encoder", "encoder.0"])
        'encoder.0'

    """
    return max(found, key=len)


@contextmanager
def watch(inside: Callable[[], tuple[str, ...]], *, by_example: bool = False) -> Iterator[RanCode]:
    """Collect the code objects of all Python functions outside torch and this package that run.

    Args:
        inside: called when a function begins, to note in which modules, innermost last.
        by_example: see :class:`RanCode`.

    Example:
        >>> def forward(x, scale=None):
        ...     return x if scale is None else x * scale
        >>> with watch(lambda: ("encoder",)) as ran:
        ...     y = forward(1)
        >>> list(ran.hazards())
        ['encoder']

    """
    ran = RanCode(by_example=by_example)
    modes = _modes()
    # By identity, since a code object computes its hash anew; they are held, so that it stays theirs.
    audited: dict[int, bool] = {}
    held: list[CodeType] = []
    seen: set[tuple[int, tuple[str, ...]]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:  # pragma: no cover -- nothing is traced in it
        if event != "call":
            return
        code = frame.f_code
        key = id(code)
        if key not in audited:
            audited[key] = _is_audited(code.co_filename)
            held.append(code)
        if not audited[key]:
            return
        where = inside()
        if (key, where) in seen:
            return
        seen.add((key, where))
        owner = frame.f_locals.get("self")
        ran.ran.append(Ran(code, where, type(owner) if isinstance(owner, nn.Module) else None))
        if _modes() != modes:
            reason = f"{code.co_qualname} runs under a decorator that switches gradients or autocast"
            ran.modes.setdefault(ran.ran[-1].place, reason)

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
    code: CodeType,
    owner: type | None = None,
    recorded: Container[tuple[CodeType, int]] = (),
    *,
    by_example: bool = False,
) -> str | None:
    """Return what in ``code`` a graph would fix, or None.

    Args:
        code: a function that ran.
        owner: the class of its ``self``, if that is a module.
        recorded: instructions that a graph has.
        by_example: it ran for known arguments, so that what is None is known, too. What is assigned to
            items of anything that outlives the call is found by what it changes.

    """
    state = assigned_outside_init(owner) if owner is not None else frozenset()
    outer = frozenset(code.co_freevars)
    instructions = [each for each in dis.get_instructions(code) if each.opname not in _NO_OPERATION]
    line = code.co_firstlineno
    for k, each in enumerate(instructions):
        if isinstance(each.starts_line, int) and not isinstance(each.starts_line, bool):
            line = each.starts_line
        found = _hazard_at(instructions, k, state, outer)
        if by_example and _is_known(instructions, k, found, owner):
            continue
        if found and (code, each.offset) not in recorded:
            at = getattr(each, "line_number", None) or line
            return f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{at}) {found}"
    return None


_NO_OPERATION = {"CACHE", "PUSH_NULL", "PRECALL", "NOP", "NOT_TAKEN", "TO_BOOL", "EXTENDED_ARG"}


_NONE_TEST = "tests whether a value is None"
_ITEM = "assigns to an item"


def _is_known(instructions: list[dis.Instruction], k: int, found: str | None, owner: type | None) -> bool:
    """Whether arguments that are known tell what happens: what is None, and what a list of a module holds."""
    if found == _ITEM:
        # What else a module's code reaches is compared with what it was before.
        return owner is not None
    before = instructions[k - 1] if k else None
    is_none = before is not None and before.opname.startswith("LOAD_CONST") and before.argval is None
    return found == _NONE_TEST or (instructions[k].opname == "IS_OP" and is_none)


def _hazard_at(
    instructions: list[dis.Instruction], k: int, state: frozenset[str], outer: frozenset[str]
) -> str | None:
    each = instructions[k]
    name, argument = each.opname, each.argval
    if "IF_NONE" in name or "IF_NOT_NONE" in name:
        return None if _is_setting(instructions[:k]) else _NONE_TEST
    if name == "IS_OP":
        return None if _is_setting(instructions[: k - 1]) else "tests the identity of a value"
    # A local that a comprehension or a function in this one reads is stored so, too.
    if name in ("STORE_ATTR", "STORE_GLOBAL", "DELETE_ATTR") or (name == "STORE_DEREF" and argument in outer):
        return f"assigns {argument}"
    if name == "STORE_SUBSCR":
        return _ITEM
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


@functools.lru_cache(maxsize=4096)
def _is_audited(filename: str) -> bool:
    if filename.startswith(_AUDITED):
        return not filename.startswith(_NOT_AUDITED)
    # The code of a graph that the user made is the user's, too.
    return filename.startswith("<eval_with_key") or is_users(filename)
