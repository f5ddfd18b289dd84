"""Look into the containers in which a model's code passes tensors around."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (type(None), bool, int, float, str)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in containers, dataclasses among them, in their order.

    Example:
        >>> import torch
        >>> tensors_in({"a": torch.ones(1), "b": (2, [torch.zeros(1)])})
        [tensor([1.]), tensor([0.])]

    """
    found: list[Tensor] = []
    pending = [value]
    while pending:
        each = pending.pop()
        kind = type(each)
        # What most calls take and give; torch's own walk takes many times longer.
        if kind in _PLAIN:
            continue
        if isinstance(each, Tensor):
            found.append(each)
        elif kind is tuple or kind is list or kind is dict:
            pending.extend(reversed(each.values() if kind is dict else each))
        else:
            pending.extend(reversed(_parts(each)))
    return found


def _parts(value: Any) -> list[Any]:
    leaves = pytree.tree_leaves(value)
    if len(leaves) != 1 or leaves[0] is not value:
        return leaves
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, set | frozenset):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name, None) for each in fields(value)]
    return []


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Copy tuples, lists and dictionaries with ``function`` of each tensor in its place.

    Example:
        >>> import torch
        >>> map_tensors(torch.neg, (torch.ones(1), 2))
        (tensor([-1.]), 2)

    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple or kind is list:
        return kind([map_tensors(function, each) for each in value])
    if kind is dict:
        return {key: map_tensors(function, each) for key, each in value.items()}
    return function(value) if isinstance(value, Tensor) else pytree.tree_map_only(Tensor, function, value)


def numbers_in(value: Any) -> list[Any]:
    """Return the numbers in containers, and in arrays of numpy's, that are no tensors; also those of slices.

    Example:
        >>> import torch
        >>> numbers_in((torch.ones(1), {"a": [2, 1.5]}, slice(None, 3), "b"))
        [2, 1.5, 3]

    """
    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, slice):
            found += numbers_in([leaf.start, leaf.stop, leaf.step])
        elif isinstance(leaf, int | float | complex):
            found.append(leaf)
        elif type(leaf).__module__ == "numpy" and hasattr(leaf, "tolist"):
            found += numbers_in(leaf.tolist())
    return found
