"""Leave a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rewriter.explainer.found import Found


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
