"""What a model, and the values that its code uses, keep between calls."""

from __future__ import annotations

import random
import sys
from collections import deque
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.reach import MOST, is_proxy, next_of
from passes.user_code.tensors import parts_in_memory

_PLAIN = (bool, int, float, str, type(None))
#: Values that are compared as they are.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
CONTAINERS = (list, dict, set, deque)
# Of a container that is compared, or put back, element by element; and of all that it leads to.
_MOST = 1000
MOST_OF_ALL = 10 * _MOST


class _Mark:
    """Stands for an object: itself, and how often it was written to if it is a tensor."""

    def __init__(self, value: Any) -> None:
        # Held, so that no other object gets its address.
        self.value = value
        # What is referred to weakly may be gone: its class must not be asked for.
        tensor = not is_proxy(value) and isinstance(value, Tensor)
        self.version = value._version if tensor and not value.is_inference() else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mark) and self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]  # two marks are compared, not looked up


def fingerprint(value: Any) -> list[Any]:
    """Return what changes when anything is assigned in ``value``, however deep, or a tensor is written to.

    Example:
        >>> state = {"h": [None]}
        >>> before = fingerprint(state)
        >>> state["h"][0] = 1
        >>> fingerprint(state) == before
        False

    """
    seen: set[int] = set()
    marks: list[Any] = []
    pending = [value]
    while pending and len(seen) < MOST:
        each = pending.pop()
        marks.append(each if type(each) in _PLAIN else _Mark(each))
        if id(each) in seen or is_proxy(each) or isinstance(each, nn.Module):
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            marks.extend(_Mark(key) for key in each)
        pending.extend(next_of(each))
    return marks


def state_of(model: nn.Module) -> dict[tuple[str, str], list[Any]]:
    """Return what tells whether anything was assigned in a model's attributes or written to its tensors.

    Returns:
        A fingerprint of each attribute, by the names of its module and its own.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> before = state_of(model)
        >>> _ = model.running_mean.add_(1)
        >>> [place for place, value in state_of(model).items() if before[place] != value]
        [('', '_buffers')]

    """
    return {
        (name, key): fingerprint(value)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
    }


def is_opened(value: Any) -> bool:
    """Whether what a value holds is looked at, too.

    Example:
        >>> is_opened([1]), is_opened("a"), is_opened([1] * 2000)
        (True, False, False)

    """
    if isinstance(value, ContextVar):
        return True
    return isinstance(value, (*CONTAINERS, tuple, frozenset)) and len(value) <= _MOST


def parts_of(value: Any) -> list[Any]:
    """Return what a container, or the present context, holds.

    Example:
        >>> parts_of({"a": 1}), parts_of(ContextVar("a", default=2))
        ([1], [2])

    """
    if isinstance(value, ContextVar):
        return [_in_context(value)]
    return list(value.values() if isinstance(value, dict) else value)


def _in_context(variable: ContextVar[Any]) -> Any:
    try:
        return variable.get()
    except LookupError:
        return None


def of_numpy() -> tuple[Any, ...]:
    """Return numpy's classes of arrays and generators, none where it is not loaded.

    Example:
        >>> isinstance(1.5, of_numpy())
        False

    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return ()
    return numpy.ndarray, numpy.random.Generator, numpy.random.RandomState


class Kept:
    """What a value leads to, to tell whether it is changed, and to make it what it was.

    Example:
        >>> log = {"calls": [1]}
        >>> kept = Kept(log)
        >>> log["calls"].append(2)
        >>> kept.is_changed()
        True
        >>> kept.put_back()
        >>> log, kept.is_changed()
        ({'calls': [1]}, False)

    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self._states = _states(value)

    def is_changed(self) -> bool:
        """Whether anything in the value was written to."""
        now = _states(self.value)
        return len(now) != len(self._states) or not all(
            a is b and _same_state(a, state, before)
            for (a, state), (b, before) in zip(now, self._states, strict=True)
        )

    def put_back(self) -> None:
        """Undo it."""
        for each, state in self._states:
            _put_back(each, state)


def _states(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < MOST_OF_ALL:
        each = pending.pop()
        if isinstance(each, PLAIN) or id(each) in seen:
            continue
        seen.add(id(each))
        state = _state(each)
        if state is not None:
            found.append((each, state))
            if is_opened(each):
                pending.extend(reversed(parts_of(each)))
    return found


def _state(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (-1 if value.is_inference() else value._version), value.detach().clone()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, of_numpy()):
        generator = _generator_of(value)
        if generator is not None:
            return repr(generator.state), generator.state
        return (value.tobytes(), value.copy()) if value.size <= _MOST**2 else None
    if isinstance(value, ContextVar):
        return [(None, _in_context(value))]
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple | set | deque) else None


def _put_back(value: Any, state: Any) -> None:
    if isinstance(value, Tensor):
        version, numbers = state
        if not value.is_inference() and value._version != version:
            with torch.no_grad():
                value.copy_(numbers)
    elif isinstance(value, random.Random):
        value.setstate(state)
    elif isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, of_numpy()):
        _put_numbers_back(value, state[1])
    elif isinstance(value, ContextVar):
        if _in_context(value) is not state[0][1]:
            value.set(state[0][1])
    else:
        _put_items_back(value, state)


def is_generator(value: Any) -> bool:
    """Whether a value is a generator of random numbers: of torch, of Python's random, of numpy.

    Example:
        >>> is_generator(random.Random(0)), is_generator(0)
        (True, False)

    """
    if isinstance(value, of_numpy()):
        return _generator_of(value) is not None
    return isinstance(value, random.Random | torch.Generator)


def _generator_of(value: Any) -> Any:
    """Return what holds the state of a generator of numpy's; None for an array."""
    return getattr(value, "bit_generator", None) or getattr(value, "_bit_generator", None)


def _put_numbers_back(value: Any, saved: Any) -> None:
    generator = _generator_of(value)
    if generator is not None:
        generator.state = saved
    elif value.flags.writeable and value.tobytes() != saved.tobytes():
        value[...] = saved


def _same_state(value: Any, now: Any, before: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(now[0] == before[0]) and all(
            map(torch.equal, parts_in_memory(now[1]), parts_in_memory(before[1]))
        )
    if isinstance(value, torch.Generator):
        return torch.equal(now, before)
    if isinstance(value, of_numpy()):
        return bool(now[0] == before[0])
    if isinstance(value, random.Random):
        return bool(now == before)
    return len(now) == len(before) and all(
        _same_value(a, b) and _same_value(key, other)
        for (key, a), (other, b) in zip(now, before, strict=True)
    )


def _same_value(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, PLAIN) and bool(now == before))


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
