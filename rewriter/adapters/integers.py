"""Let stock shap take integers: it asks every input for gradients, which integers do not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def integers_as_numbers(explainer: Any) -> Iterator[None]:
    """While active, the background of a ``PyTorchDeep`` holds floats, which the model gets as integers.

    What shap makes of samples and background is then a batch of floats, too. The model's inputs are cast
    back, so that they have no attribution; with ``(model, layer)`` the input of the layer does.

    Args:
        explainer: made by shap; its model is left with a hook, for the caller to remove.

    """
    data: list[Tensor] = explainer.data
    dtypes = [each.dtype for each in data]
    if all(dtype.is_floating_point for dtype in dtypes):
        yield
        return

    def cast_back(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            each if dtype.is_floating_point else each.detach().to(dtype)
            for each, dtype in zip(inputs, dtypes, strict=True)
        )

    # Every index that a model looks up is exact in it.
    explainer.data = [each if each.is_floating_point() else each.to(torch.float64) for each in data]
    handle = explainer.model.register_forward_pre_hook(cast_back)
    try:
        yield
    finally:
        handle.remove()
        explainer.data = data
