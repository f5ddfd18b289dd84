"""Name every place in a nested structure: ``output[1][0]``, ``input['x'].data``.

Models take and return tensors in tuples, dictionaries, dataclasses, named tuples (a PackedSequence is
one) and objects of their own. Here each is seen as its type and its parts. What cannot be looked into,
such as a generator, is said to be so: it may hold anything.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, ValuesView
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.reach import Steps, without_recursion

# Compared by what they say; a float is a number that may differ by rounding.
_PLAIN = (type(None), bool, int, str, bytes, Enum, range, slice, torch.dtype, torch.device, torch.layout)
_WHOLE = (Tensor, float, complex, *_PLAIN)
# Their contents are no attributes, but they may have attributes besides.
_CONTAINERS = (tuple, list, dict, deque, set, frozenset)
# Of which there may be many, none of them to be copied.
_NUMBERS = frozenset((type(None), bool, int, float, complex, str))
_ATTRIBUTES = "__dict__", "__weakref__"


def walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield every place of a structure and what is there, a container before its parts.

    Args:
        value: the structure.
        place: how to call the whole.

    Example:
        >>> [where for where, _ in walk((1, {"h": 2}), "output")]
        ['output', 'output[0]', 'output[1]', "output[1]['h']"]

    """
    # Objects may refer to each other in circles; one that is there twice is compared twice.
    around: set[int] = set()
    pending = [(place, value, False)]
    while pending:
        where, node, is_done = pending.pop()
        if is_done:
            around.discard(id(node))
            continue
        yield where, node
        parts = None if id(node) in around else _parts(node)
        if parts:
            around.add(id(node))
            pending.append((where, node, True))
            pending.extend((where + suffix, part, False) for suffix, part in reversed(parts))


def differences(expected: Any, got: Any, place: str) -> list[tuple[str, str]]:
    """Compare two structures in everything but their numbers.

    Types, lengths, keys, and the dtype, shape and device of tensors count; so do the values of what
    is no number that rounds: None, bool, int, str. What cannot be looked into counts as different.

    Returns:
        Each place where they differ, with a sentence that says how.

    Example:
        >>> differences((1, 2), [1, 3], "output")
        [('output', 'expected tuple of 2, got list of 2'), ('output[1]', 'expected 2, got 3')]

    """
    theirs = dict(walk(got, place))
    found: list[tuple[str, str]] = []
    for where, node in walk(expected, place):
        if where in theirs and describe(node) != describe(theirs[where]):
            found.append((where, f"expected {describe(node)}, got {describe(theirs[where])}"))
        elif where not in theirs and not found:
            found.append((where, f"expected {describe(node)}, got nothing"))
        elif _is_opaque(node):
            found.append(
                (where, f"cannot look into {describe(node)} at {where}; return tuples, lists or dicts")
            )
    return found


def numbers(value: Any, place: str) -> dict[str, Tensor]:
    """Return the tensors of a structure by place; Python floats and numpy arrays count as tensors.

    Example:
        >>> numbers((torch.ones(1), [0.5, None]), "output")
        {'output[0]': tensor([1.]), 'output[1][0]': tensor(0.5000, dtype=torch.float64)}

    """
    found: dict[str, Tensor] = {}
    for where, node in walk(value, place):
        if isinstance(node, Tensor):
            found[where] = node
        elif isinstance(node, float):
            found[where] = torch.tensor(node, dtype=torch.float64)
        elif isinstance(node, complex) or hasattr(node, "__array__"):
            found[where] = torch.as_tensor(node)
    return found


def map_tensors(value: Any, place: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    """Copy a structure with ``change(place, tensor)`` in place of each tensor.

    Example:
        >>> map_tensors({"x": torch.ones(1), "n": 3}, "input", lambda where, x: x + 1)
        {'x': tensor([2.]), 'n': 3}

    """
    return without_recursion(_mapped(value, place, change, set()))


def _mapped(value: Any, place: str, change: Callable[[str, Tensor], Tensor], around: set[int]) -> Steps:
    if isinstance(value, Tensor):
        return change(place, value)
    if type(value) in (tuple, list) and _NUMBERS.issuperset(map(type, value)):
        return type(value)(value)
    parts = None if callable(value) else _contents(value)
    if parts is None:
        return copy.deepcopy(value)
    if id(value) in around:
        # It refers to itself.
        return value
    around.add(id(value))
    found = []
    for suffix, part in parts:
        found.append((yield _mapped(part, place + suffix, change, around)))
    around.discard(id(value))
    return _assemble(value, found)


def describe(value: Any) -> str:
    """Say what a value is, without its numbers.

    Example:
        >>> describe(torch.ones(2, 3)), describe({"a": 1})
        ('Tensor float32 (2, 3) on cpu', "dict with ['a']")

    """
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"Tensor {dtype} {tuple(value.shape)} on {value.device.type}"
    if isinstance(value, _PLAIN):
        return repr(value)
    kind = type(value).__qualname__
    if isinstance(value, type):
        return f"{kind} {value.__module__}.{value.__qualname__}"
    if hasattr(value, "__array__"):
        return f"{kind} {value.dtype} {tuple(value.shape)}"
    parts = _parts(value)
    if parts is None:
        return kind
    if type(value) in (tuple, list):
        return f"{kind} of {len(parts)}"
    return f"{kind} with {', '.join(suffix for suffix, _ in parts) or 'nothing'}"


def _is_opaque(value: Any) -> bool:
    whole = isinstance(value, (*_WHOLE, type)) or hasattr(value, "__array__")
    return not whole and _parts(value) is None


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """Return the parts of a value with what to append to its place, or None if no part can be seen."""
    contents = _contents(value)
    if contents is None or not isinstance(value, _CONTAINERS):
        return contents
    inside = {id(part) for _, part in contents}
    return contents + [each for each in _attributes(value) if id(each[1]) not in inside]


def _contents(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, (*_WHOLE, type, nn.Module)) or hasattr(value, "__array__"):
        return None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", part) for name, part in zip(value._fields, value, strict=True)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple | list | deque | ValuesView):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if isinstance(value, set | frozenset):
        # In an order that two equal sets share, if there is one.
        plain = all(isinstance(element, _PLAIN) for element in value)
        return [(f"{{{k}}}", element) for k, element in enumerate(sorted(value, key=repr))] if plain else None
    return None if _has_hidden_state(type(value)) else _attributes(value)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    names = [name for name in _slots(type(value)) if hasattr(value, name)]
    found = {f".{name}": getattr(value, name) for name in names}
    found |= {f".{name}": part for name, part in getattr(value, "__dict__", {}).items()}
    return list(found.items())


def _slots(kind: type) -> list[str]:
    found = []
    for cls in reversed(kind.__mro__):
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{cls.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in found if name not in _ATTRIBUTES]


def _has_hidden_state(kind: type) -> bool:
    """Tell whether objects have room for more than their attributes, as those written in C have."""
    references = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    seen = object.__basicsize__ + references * tuple.__itemsize__
    # A bare object has no attributes, so that two of them cannot be told from each other.
    return kind is object or kind.__itemsize__ != 0 or kind.__basicsize__ > seen


def _assemble(value: Any, parts: list[Any]) -> Any:
    """Make a container like ``value`` of other parts."""
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(parts)
    if isinstance(value, Mapping):
        items = dict(zip(value, parts, strict=True))
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        mapping = copy.copy(value)
        mapping.update(items)
        return mapping
    if isinstance(value, deque):
        return type(value)(parts, value.maxlen)
    if isinstance(value, tuple | list | set | frozenset):
        return type(value)(parts)
    if _has_hidden_state(type(value)):
        return copy.deepcopy(value) if not any(isinstance(part, Tensor) for part in parts) else parts
    new = copy.copy(value)
    for (suffix, _), part in zip(_contents(value) or (), parts, strict=True):
        object.__setattr__(new, suffix[1:], part)
    return new
