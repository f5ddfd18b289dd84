"""What a model's code reads, and may write, outside of the model: values of its files and of its classes."""

from __future__ import annotations

import functools
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.randomness import random_state_kept
from passes.user_code.source import is_users

#: Values that are compared as they are.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CONTAINERS = (list, dict, set, deque)
# Of a container that is compared, or put back, element by element.
_MOST = 1000

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
            if not name.startswith("__") and isinstance(value, (*PLAIN, *_CONTAINERS, tuple, Tensor)):
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
                found |= {(id(value), each): (value, each) for each in _attributes_read(value, names)}
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
        *_CONTAINERS,
        tuple,
        Tensor,
        random.Random,
        torch.Generator,
        *_of_numpy(),
    )
    return isinstance(value, kinds)


def _of_numpy() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return ()
    return numpy.ndarray, numpy.random.Generator, numpy.random.RandomState


def _attributes_read(value: Any, names: Iterable[str]) -> Iterator[str]:
    """Yield the names in some code that are attributes of a user's module, class or object, and compared."""
    if isinstance(value, types.ModuleType):
        users = is_users(getattr(value, "__file__", None) or "<frozen>")
    else:
        kind = value if isinstance(value, type) else type(value)
        home = sys.modules.get(kind.__module__)
        file = getattr(home, "__file__", None)
        users = kind.__module__ != "builtins" and (file is None or is_users(file))
    held = getattr(value, "__dict__", {}) if users and not isinstance(value, nn.Module) else {}
    yield from (name for name in names if name in held and _is_compared(held[name]))


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
    return tuple(_frozen(getattr(owner, name, None), 3) for owner, name in places)


def _frozen(value: Any, depth: int) -> Hashable:
    if isinstance(value, PLAIN):
        # True equals 1.
        return (value, "bool") if isinstance(value, bool) else value
    if isinstance(value, Tensor):
        return id(value), value._version
    if hasattr(value, "tobytes"):
        return id(value), zlib.crc32(value.tobytes())
    if depth and isinstance(value, list | tuple | deque | set | frozenset) and len(value) <= _MOST:
        items = [_frozen(each, depth - 1) for each in value]
        return frozenset(items) if isinstance(value, set | frozenset) else (type(value).__name__, *items)
    if depth and isinstance(value, dict) and len(value) <= _MOST:
        return tuple((_frozen(key, 0), _frozen(each, depth - 1)) for key, each in value.items())
    return id(value)


class Outside:
    """What the code of a model changes outside of it: containers, tensors, generators, names.

    Args:
        model: the model.

    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        places = places_outside({type(module) for module in modules}, _hooked_to(modules))
        values = ((owner, name, getattr(owner, name)) for owner, name in places if hasattr(owner, name))
        self._kept = [(owner, name, value, _saved(value, 3)) for owner, name, value in values]

    def changed(self) -> list[str]:
        """Return the names of what is not as it was."""
        return [
            name
            for owner, name, value, saved in self._kept
            if getattr(owner, name, None) is not value or not _same(_saved(value, 3), saved)
        ]

    def put_back(self) -> None:
        """Make everything as it was."""
        for owner, name, value, saved in self._kept:
            if getattr(owner, name, None) is not value:
                setattr(owner, name, value)
            _put_back(value, saved)


def _hooked_to(modules: Iterable[nn.Module]) -> Iterator[types.FunctionType]:
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from (each for each in hooks.values() if isinstance(each, types.FunctionType))


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
    with random_state_kept():
        try:
            yield outside
        finally:
            outside.put_back()


def _saved(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return value._version, value.detach().clone()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, _of_numpy()):
        generator = _generator_of(value)
        if generator is not None:
            return repr(generator.state), generator.state
        return (value.tobytes(), value.copy()) if value.size <= _MOST**2 else None
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple | set | deque):
        items = list(enumerate(value))
    else:
        return None
    deep = depth and len(items) <= _MOST
    return items, [_saved(each, depth - 1) for _, each in items] if deep else None


def _put_back(value: Any, saved: Any) -> None:
    if saved is None:
        return
    if isinstance(value, Tensor):
        version, numbers = saved
        if value._version != version:
            with torch.no_grad():
                value.copy_(numbers)
    elif isinstance(value, random.Random):
        value.setstate(saved)
    elif isinstance(value, torch.Generator):
        value.set_state(saved)
    elif isinstance(value, _of_numpy()):
        _put_numbers_back(value, saved[1])
    else:
        items, below = saved
        _put_items_back(value, items)
        for (_, each), part in zip(items, below or (), strict=False):
            _put_back(each, part)


def _generator_of(value: Any) -> Any:
    """Return what holds the state of a generator of numpy's; None for an array."""
    return getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", None)


def _put_numbers_back(value: Any, saved: Any) -> None:
    generator = _generator_of(value)
    if generator is not None:
        generator.state = saved
    elif value.flags.writeable and value.tobytes() != saved.tobytes():
        value[...] = saved


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, tuple) and isinstance(before, tuple) and now and isinstance(now[0], bytes | str):
        return bool(now[0] == before[0])
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, list) and isinstance(before, list):
        return len(now) == len(before) and all(map(_same, now, before))
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return now is before or (now.shape == before.shape and torch.equal(now, before))
    plain = type(now) is type(before) and isinstance(now, PLAIN)
    return now is before or (plain and bool(now == before))


def _put_items_back(value: Any, items: list[tuple[Any, Any]]) -> None:
    now = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    same = len(now) == len(items) and all(
        a is b and key is other for (key, a), (other, b) in zip(now, items, strict=True)
    )
    if same or isinstance(value, tuple):
        return
    if isinstance(value, dict):
        value.clear()
        value.update(items)
    elif isinstance(value, set):
        value.clear()
        value.update(each for _, each in items)
    else:
        value.clear()
        value.extend(each for _, each in items)
