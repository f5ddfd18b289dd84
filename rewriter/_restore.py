"""Leave a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Undo, also after an exception, what happens to the attributes, hooks, mode and gradients of a model.

    Values of parameters and buffers are not copied: whoever changes them in place is not undone.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with as_found(model):
        ...     model.x, model.training = 1, False
        >>> hasattr(model, "x"), model.training
        (False, True)

    """
    modules = list(model.modules())
    attributes = [_snapshot(module) for module in modules]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, found in zip(modules, attributes, strict=True):
            _restore(module, found)
        for parameter, gradient, requires in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(requires)


def _snapshot(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    return {
        key: (value, dict(value) if isinstance(value, dict) else None)
        for key, value in module.__dict__.items()
    }


def _restore(module: nn.Module, found: dict[str, tuple[Any, dict[Any, Any] | None]]) -> None:
    """Put contents back into the same dictionaries: hook handles refer to them."""
    state = module.__dict__
    for key in state.keys() - found.keys():
        del state[key]
    for key, (value, content) in found.items():
        state[key] = value
        if content is not None and not _same_items(value, content):
            value.clear()
            value.update(content)


def _same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
