"""Leave a model as it was found."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Undo, also after an exception, what happens to a model.

    That is attributes, the contents of lists, sets and dictionaries among them, hooks, mode, gradients
    and buffers. Values of parameters are not copied: no explainer changes them.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with as_found(model):
        ...     model.x, model.training = 1, False
        >>> hasattr(model, "x"), model.training
        (False, True)

    """
    found = Found(model)
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        found.restore()
        for buffer, version, value in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
        for parameter, gradient, requires in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(requires)


Snapshot = dict[str, tuple[Any, Any]]


class Found:
    """The attributes of all modules of a model, and what their lists, sets and dictionaries held.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> found = Found(model)
        >>> model.x = 1
        >>> found.is_as(model)
        False
        >>> found.restore()
        >>> found.is_as(model), hasattr(model, "x")
        (True, False)

    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, _snapshot(module)) for module in model.modules()]

    def restore(self) -> None:
        """Make the modules what they were."""
        for module, found in self._modules:
            _restore(module, found)

    def is_as(self, model: nn.Module) -> bool:
        """Whether a model is this one, and nobody set an attribute since."""
        modules = list(model.modules())
        return len(modules) == len(self._modules) and all(
            module is known and _is_same(module, found)
            for module, (known, found) in zip(modules, self._modules, strict=True)
        )


def _snapshot(module: nn.Module) -> Snapshot:
    return {
        key: (value, copy.copy(value) if isinstance(value, dict | list | set) else None)
        for key, value in module.__dict__.items()
    }


def _is_same(module: nn.Module, found: Snapshot) -> bool:
    state = module.__dict__
    return state.keys() == found.keys() and all(
        state[key] is value and (content is None or _same_items(value, content))
        for key, (value, content) in found.items()
    )


def _restore(module: nn.Module, found: Snapshot) -> None:
    """Put contents back into the same containers: hook handles refer to them."""
    state = module.__dict__
    for key in state.keys() - found.keys():
        del state[key]
    for key, (value, content) in found.items():
        state[key] = value
        if content is not None and not _same_items(value, content):
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)


def _same_items(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return bool(a.keys() == b.keys()) and all(a[key] is b[key] for key in a)
    return all(x is y for x, y in zip(a, b, strict=True))
