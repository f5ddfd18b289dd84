"""What two calls of a model must have in common for the proof of one to hold for the other."""

from __future__ import annotations

import contextlib
import enum
import types
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import Atom, Layout
from passes.recurrent.recurrence import Recurrence
from passes.user_code.reach import attributes_of, is_proxy, next_of
from passes.user_code.state import PLAIN
from passes.user_code.surroundings import Place, values_at

#: Parts of arguments that are looked at: those beyond may be the samples of a data set.
MOST = 100_000
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, nn.Module, torch.Generator, enum.Enum)


def signature(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outside: Iterable[Place]
) -> tuple[Hashable, ...]:
    """Return what the proof of a call holds for.

    Args:
        model: that is called.
        args: positional arguments.
        kwargs: keyword arguments.
        outside: what the original's code reads outside of the model.

    Example:
        >>> one, other = (signature(nn.Tanh(), (x,), {}, []) for x in (torch.zeros(2), torch.ones(2)))
        >>> one == other, one == signature(nn.Tanh(), (torch.zeros(3),), {}, [])
        (True, False)

    """
    modes = tuple(
        each.training for each in model.modules() if not isinstance(each, Atom | Layout | Recurrence)
    )
    return kinds_of((args, kwargs)), modes, _torchs_modes(), values_at(outside)


def _torchs_modes() -> tuple[Hashable, ...]:
    """Return what code may ask torch for."""
    return (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


def kinds_of(value: Any) -> tuple[Hashable, ...]:
    """Return what a structure is but for the numbers in its tensors, at any depth, up to ``MOST`` parts.

    Example:
        >>> kinds_of([torch.zeros(2), 3])
        ((<class 'list'>, 2), (torch.Size([2]), torch.float32, device(type='cpu')), (<class 'int'>, 3))

    """
    found: list[Hashable] = []
    seen: dict[int, int] = {}
    pending = [value]
    while pending and len(found) < MOST:
        each = pending.pop()
        if isinstance(each, Tensor):
            found.append((each.shape, each.dtype, each.device))
        elif isinstance(each, PLAIN):
            # NaN equals nothing.
            found.append((type(each), each if each == each else "nan"))
        elif id(each) in seen:
            found.append(("again", seen[id(each)]))
        else:
            seen[id(each)] = len(found)
            told, parts = _told(each)
            found.append(told)
            pending.extend(reversed(parts))
    return tuple(found)


def _told(value: Any) -> tuple[Hashable, list[Any]]:
    """Return what a value is, and the parts that are to be told of besides."""
    kind = type(value)
    if isinstance(value, tuple | list | deque):
        kinds = set(map(type, value)) if len(value) > 1 else set()
        if len(kinds) == 1 and kinds <= _NUMBERS:
            return (kind, *kinds, tuple(value)), []
        return (kind, len(value)), list(value)
    if isinstance(value, dict):
        return (kind, tuple(map(_name, value))), list(value.values())
    if isinstance(value, set | frozenset):
        return (kind, frozenset(map(_name, value))), []
    if is_proxy(value) or isinstance(value, _OPAQUE):
        return (kind, id(value)), []
    if isinstance(value, types.FunctionType):
        return (kind, value.__code__), list(next_of(value))
    if isinstance(value, types.MethodType):
        return (kind, value.__func__.__code__), [value.__self__]
    if hasattr(value, "__array__"):
        with contextlib.suppress(AttributeError):
            return (kind, tuple(value.shape), str(value.dtype)), []
    attributes = attributes_of(value)
    return (kind, tuple(attributes)), list(attributes.values())


_NUMBERS = {bool, int, float, str}


def _name(key: Any) -> Hashable:
    return (type(key), key) if isinstance(key, PLAIN) else (type(key), id(key))


def without_sizes(signature: Hashable) -> Hashable:
    """Return the same for all sizes of tensors.

    Example:
        >>> without_sizes((torch.Size([2, 3]), "a"))
        (2, 'a')

    """
    if isinstance(signature, torch.Size):
        return len(signature)
    return tuple(map(without_sizes, signature)) if type(signature) is tuple else signature
