"""Name every place in a nested structure: ``output[1][0]``, ``input['x'].data``.

Models take and return tensors in tuples, dictionaries, dataclasses, named tuples (a PackedSequence is
one) and objects of their own. Here each is seen as its type and its parts.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

# Compared by what they say; a float is a number that may differ by rounding.
_PLAIN = (type(None), bool, int, str, bytes, Enum, torch.dtype, torch.device)
_WHOLE = (Tensor, nn.Module, type, float, complex, *_PLAIN)


def walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield every place of a structure and what is there, a container before its parts.

    Args:
        value: the structure.
        place: how to call the whole.

    Example:
        >>> [where for where, _ in walk((1, {"h": 2}), "output")]
        ['output', 'output[0]', 'output[1]', "output[1]['h']"]

    """
    yield from _walk(value, place, set())


def differences(expected: Any, got: Any, place: str) -> list[tuple[str, str]]:
    """Compare two structures in everything but their numbers.

    Types, lengths, keys, and the dtype, shape and device of tensors count; so do the values of what
    is no number that rounds: None, bool, int, str.

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
    if isinstance(value, Tensor):
        return change(place, value)
    parts = _parts(value)
    if parts is None:
        return copy.deepcopy(value)
    return _assemble(value, [map_tensors(part, place + suffix, change) for suffix, part in parts])


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
    if hasattr(value, "__array__"):
        return f"{kind} {value.dtype} {tuple(value.shape)}"
    parts = _parts(value)
    if parts is None:
        return kind
    if type(value) in (tuple, list):
        return f"{kind} of {len(parts)}"
    return f"{kind} with {', '.join(suffix for suffix, _ in parts) or 'nothing'}"


def _walk(value: Any, place: str, objects: set[int]) -> Iterator[tuple[str, Any]]:
    yield place, value
    if isinstance(value, tuple | list | Mapping):
        parts = _parts(value)
    else:
        # Objects may refer to each other in circles.
        parts = None if id(value) in objects else _parts(value)
        objects.add(id(value))
    for suffix, part in parts or ():
        yield from _walk(part, place + suffix, objects)


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """Return the parts of a container with what to append to its place, or None for a leaf."""
    if isinstance(value, _WHOLE) or hasattr(value, "__array__") or callable(value):
        return None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", part) for name, part in zip(value._fields, value, strict=True)]
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple | list):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(f".{each.name}", getattr(value, each.name)) for each in dataclasses.fields(value)]
    if hasattr(value, "__dict__"):
        return [(f".{name}", part) for name, part in vars(value).items()]
    return None


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
    if isinstance(value, tuple | list):
        return type(value)(parts)
    new = copy.copy(value)
    for (suffix, _), part in zip(_parts(value) or (), parts, strict=True):
        object.__setattr__(new, suffix[1:], part)
    return new
