"""Functions that are one node of whatever graph is traced through them."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx


def leaf(function: Callable[..., Any], module: str | None = None) -> Callable[..., Any]:
    """Make a function a node of whatever graph is traced through it, also by torch's own tracer.

    Args:
        function: what the node calls.
        module: where the result is found by the function's name, if elsewhere.

    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda each: _note(each, found))
        if not found:
            return function(*args, **kwargs)
        return found[0].tracer.create_proxy("call_function", call, args, kwargs)

    if module is not None:
        call.__module__, call.__qualname__ = module, function.__name__
        call.__doc__ = f"See ``{function.__name__}`` of the module that it stands for."
    return call


def _note(value: Any, found: list[fx.Proxy]) -> Any:
    if isinstance(value, fx.Proxy):
        found.append(value)
    return value


@leaf
def set_item(tensor: Any, index: Any, value: Any) -> None:
    """Do ``tensor[index] = value``."""
    tensor[index] = value


@leaf
def augment(operation: str, tensor: Any, value: Any) -> Any:
    """Do ``tensor += value`` for the operation ``iadd``, and so on; return what the name stands for then."""
    return getattr(operator, operation)(tensor, value)


@leaf
def with_item(tensor: Any, index: Any, value: Any) -> Any:
    """Return what ``tensor`` is after ``tensor[index] = value``.

    Example:
        >>> with_item(torch.zeros(3), 1, torch.tensor(2.0))
        tensor([0., 2., 0.])

    """
    changed = tensor.clone() if isinstance(tensor, Tensor) else copy.copy(tensor)
    changed[index] = value
    return changed


@leaf
def clone(value: Any) -> Any:
    """Return a copy of a tensor; what is no tensor stays."""
    return value.clone() if isinstance(value, Tensor) else value


@leaf
def overwritten(tensor: Tensor, value: Any) -> Tensor:
    """Return what ``tensor`` is after ``tensor.copy_(value)`` or ``tensor.fill_(value)``.

    Example:
        >>> overwritten(torch.zeros(2), torch.tensor(3))
        tensor([3., 3.])

    """
    if not isinstance(value, Tensor):
        return torch.full_like(tensor, value)
    return value.to(tensor).expand_as(tensor)


@leaf
def write_through(tensor: Any, value: Any) -> Any:
    """Have all that shares memory with ``tensor`` hold ``value``; what is no tensor stays.

    Example:
        >>> x = torch.zeros(2)
        >>> _ = write_through(x[:1], torch.ones(1))
        >>> x
        tensor([1., 0.])

    """
    return tensor.copy_(value) if isinstance(tensor, Tensor) and value is not tensor else tensor


@leaf
def write_back(tensor: Any, copy: Any) -> Any:
    """Do the same with a copy of ``tensor``, if something has written to that since.

    Example:
        >>> x = torch.zeros(2)
        >>> copy = x.clone()
        >>> _ = write_back(x, copy), write_back(x, copy.add_(1))
        >>> x
        tensor([1., 1.])

    """
    return write_through(tensor, copy) if isinstance(copy, Tensor) and copy._version else tensor
