"""The tensors in what a model takes or gives: tuples, mappings, dataclasses, trees of torch's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree


def leaves_of(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what a value holds that is no container, with its keys, fields and indices on the way.

    Example:
        >>> list(leaves_of({"a": 1, "b": (2, None)}))
        [(('a',), 1), (('b', '0'), 2), (('b', '1'), None)]

    """
    items = _items(value)
    if items is None:
        yield place, value
        return
    for key, item in items:
        yield from leaves_of(item, (*place, key))


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a value, in order.

    Example:
        >>> import torch
        >>> tensors_of({"a": torch.tensor(1), "b": (torch.tensor(2), "text")})
        [tensor(1), tensor(2)]

    """
    return [leaf for _, leaf in leaves_of(value) if isinstance(leaf, Tensor)]


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a value in which every leaf is what ``change`` makes of it.

    Example:
        >>> with_leaves({"a": 1, "b": (2, 3)}, lambda leaf: -leaf)
        {'a': -1, 'b': (-2, -3)}

    """
    items = _items(value)
    if items is None:
        return change(value)
    new = [with_leaves(item, change) for _, item in items]
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, item in zip(value, new, strict=True):
            made[key] = item
        return made
    if dataclasses.is_dataclass(value):
        made = copy.copy(value)
        for (key, _), item in zip(items, new, strict=True):
            object.__setattr__(made, key, item)  # a frozen one, too
        return made
    if isinstance(value, tuple):
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    if isinstance(value, list):
        return type(value)(new)
    return pytree.tree_unflatten(new, pytree.tree_structure(value))


def is_keyed(value: Any) -> bool:
    """Whether the parts of a value have names.

    Example:
        >>> is_keyed({"a": 1}), is_keyed((1, 2))
        (True, False)

    """
    return (
        isinstance(value, Mapping)
        or dataclasses.is_dataclass(value)
        or (isinstance(value, tuple) and hasattr(value, "_fields"))
    )


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Return the parts of a container by name, None for anything else."""
    if isinstance(value, Tensor | PackedSequence | type):
        return None
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None) or map(str, range(len(value)))
        return list(zip(names, value, strict=True))
    leaves, structure = pytree.tree_flatten(value)
    return None if structure.is_leaf() else [(str(k), leaf) for k, leaf in enumerate(leaves)]
