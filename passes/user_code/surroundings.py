"""What a model's code reads, and may write, outside of the model: values of its files and of its classes."""

from __future__ import annotations

import functools
import os
import random
import sys
import threading
import types
import zlib
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.randomness import random_state_kept
from passes.user_code.source import is_users
from passes.user_code.state import CONTAINERS, MOST_OF_ALL, PLAIN, Kept, is_opened, of_numpy, parts_of

# Names by which code asks for the environment, and what holds it.
_ASKING = {"environ", "environb", "getenv"}
_ENVIRONMENT = os.environ, "_data"

Place = tuple[Any, str]


def places_outside(kinds: Iterable[type], functions: Iterable[types.FunctionType] = ()) -> list[Place]:
    """Return where classes' code may look values up: a module or a class, and a name in it.

    Args:
        kinds: classes of modules.
        functions: others, such as hooks.

    Example:
        >>> class Scaled(nn.Module):
        ...     scale = 2.0
        ...     def forward(self, x):
        ...         return self.scale * x
        >>> [name for _, name in places_outside([Scaled])]
        ['scale']

    """
    given = frozenset(functions)
    # Functions may hold on to a model: they are not remembered.
    return list(_places(frozenset(kinds), given) if given else _places_of(frozenset(kinds)))


@functools.lru_cache(maxsize=256)
def _places_of(kinds: frozenset[type]) -> tuple[Place, ...]:
    return _places(kinds)


def _places(
    kinds: frozenset[type], functions: frozenset[types.FunctionType] = frozenset()
) -> tuple[Place, ...]:
    found: dict[tuple[int, str], Place] = {}
    pending: list[types.FunctionType] = list(functions)
    for kind, cls in [(each, cls) for each in kinds for cls in each.__mro__ if not _is_torchs(cls)]:
        methods = [_plain(value) for value in vars(cls).values()]
        own = [each for each in methods if isinstance(each, types.FunctionType) and _is_users(each)]
        pending += own
        for name, value in vars(cls).items() if own else ():
            if not name.startswith("__") and isinstance(value, (*PLAIN, *CONTAINERS, tuple, Tensor)):
                # Of the class itself, which may get one of its own.
                found[id(kind), name] = kind, name
    seen: set[int] = set()
    while pending:
        function = pending.pop()
        if id(function) in seen or not _is_users(function):
            continue
        seen.add(id(function))
        home = sys.modules.get(function.__module__)
        space = function.__globals__
        names = list(_names(function.__code__))
        if not _ASKING.isdisjoint(names):
            found[id(os.environ), "_data"] = _ENVIRONMENT
        for cell in filter(_is_filled, function.__closure__ or ()):
            found[id(cell), "cell_contents"] = cell, "cell_contents"
        if function.__defaults__:
            found[id(function), "__defaults__"] = function, "__defaults__"
        for name in names:
            if name not in space:
                continue
            value = space[name]
            if isinstance(value, types.FunctionType):
                pending.append(value)
            elif _is_compared(value):
                owner = home if home is not None and vars(home) is space else _Space(space)
                found[id(space), name] = owner, name
            else:
                found |= {(id(each), key): (each, key) for each, key in _attributes_read(value, names)}
    return tuple(found.values())


def _is_filled(cell: Any) -> bool:
    try:
        return _is_compared(cell.cell_contents)
    except ValueError:
        # Of a name that is not bound yet.
        return False


def _is_compared(value: Any) -> bool:
    kinds: tuple[Any, ...] = (
        *PLAIN,
        *CONTAINERS,
        tuple,
        Tensor,
        random.Random,
        torch.Generator,
        ContextVar,
        *of_numpy(),
    )
    return isinstance(value, kinds)


def _attributes_read(value: Any, names: Iterable[str]) -> Iterator[Place]:
    """Yield attributes of a user's module, class or object, and of objects in it, that some code names."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        each = pending.pop()
        if id(each) in seen or not _is_users_object(each):
            continue
        seen.add(id(each))
        held = getattr(each, "__dict__", {})
        for name in names:
            if name in held and not name.startswith("__"):
                pending.append(held[name])
                inner = _is_users_object(held[name]) and not isinstance(held[name], type | types.ModuleType)
                # What is no value may be another object later.
                if inner or _is_compared(held[name]):
                    yield each, name


def _is_users_object(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return False
    if isinstance(value, types.ModuleType):
        return is_users(getattr(value, "__file__", None) or "<frozen>")
    kind = value if isinstance(value, type) else type(value)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return kind.__module__ != "builtins" and (file is None or is_users(file))


def _plain(value: Any) -> Any:
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def _is_torchs(cls: type) -> bool:
    return cls is object or cls.__module__.startswith("torch.")


def _is_users(function: types.FunctionType) -> bool:
    return is_users(function.__code__.co_filename)


class _Space:
    """The names of code that no module has, such as that of ``exec``."""

    def __init__(self, space: dict[str, Any]) -> None:
        self.__dict__ = space


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def values_at(places: Iterable[Place]) -> tuple[Hashable, ...]:
    """Return what tells whether a plain value has changed: itself, or its elements.

    Example:
        >>> import math
        >>> values_at([(math, "pi")])
        (3.141592653589793,)

    """
    return tuple(_frozen(getattr(owner, name, None)) for owner, name in places)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, PLAIN):
        # True equals 1.
        return (value, "bool") if isinstance(value, bool) else value
    found: list[Hashable] = []
    seen: set[int] = set()
    pending = [value]
    while pending and len(found) < MOST_OF_ALL:
        each = pending.pop()
        if isinstance(each, PLAIN):
            found.append(_frozen(each))
        elif isinstance(each, Tensor):
            found.append((id(each), -1 if each.is_inference() else each._version))
        # Of the type: what stands for a module until it is imported would import it.
        elif hasattr(type(each), "tobytes"):
            found.append((id(each), zlib.crc32(each.tobytes())))
        elif id(each) in seen or not is_opened(each):
            found.append(id(each))
        elif isinstance(each, set | frozenset):
            found.append(frozenset(_frozen(part) if isinstance(part, PLAIN) else id(part) for part in each))
        else:
            seen.add(id(each))
            found.append((type(each), len(parts_of(each))))
            if isinstance(each, dict):
                found += [_frozen(key) if isinstance(key, PLAIN) else id(key) for key in each]
            pending.extend(reversed(parts_of(each)))
    return tuple(found)


class Outside:
    """What the code of a model changes outside of it: containers, tensors, generators, names.

    Args:
        model: the model.

    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        places = places_outside({type(module) for module in modules}, _hooked_to(modules))
        values = ((owner, name, getattr(owner, name)) for owner, name in places if hasattr(owner, name))
        self._kept = [(owner, name, Kept(value)) for owner, name, value in values]

    def changed(self) -> list[str]:
        """Return the names of what is not as it was."""
        return [
            name
            for owner, name, kept in self._kept
            if getattr(owner, name, None) is not kept.value or kept.is_changed()
        ]

    def put_back(self) -> None:
        """Make everything as it was."""
        for owner, name, kept in self._kept:
            if getattr(owner, name, None) is not kept.value:
                setattr(owner, name, kept.value)
            kept.put_back()


def _hooked_to(modules: Iterable[nn.Module]) -> Iterator[types.FunctionType]:
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from (each for each in hooks.values() if isinstance(each, types.FunctionType))


_lock = threading.Lock()
_eager: list[Any] = []


@contextmanager
def _as_written() -> Iterator[None]:
    """Have what torch.compile has compiled run as it is written: our modes would be compiled with it."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _lock:
        # For all threads, so that the last of them takes back what the first has set.
        _eager.append(None if _eager else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            last = _eager.pop()
            if last is not None:
                last.__exit__(None, None, None)


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[Outside]:
    """Undo what code of a model does outside of it, to generators of random numbers among the rest.

    Example:
        >>> class Counting(nn.Module):
        ...     calls = []
        ...     def forward(self, x):
        ...         self.calls.append(1)
        ...         return x
        >>> model = Counting()
        >>> with unnoticed(model) as outside:
        ...     _ = model(torch.ones(1))
        ...     outside.changed()
        ['calls']
        >>> Counting.calls
        []

    """
    outside = Outside(model)
    with random_state_kept(), _as_written():
        try:
            yield outside
        finally:
            outside.put_back()
