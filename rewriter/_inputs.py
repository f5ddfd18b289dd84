"""What an explainer is given: brought into tensors, and checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passes.errors import InputError


def as_inputs(given: Any, like: Tensor | None, what: str) -> list[Tensor]:
    """Return a list of tensors on the model's device; arrays and data frames get the model's dtype.

    Args:
        given: one tensor, array or data frame, or a list of them.
        like: a tensor with the device and the dtype of the model.
        what: name of the argument for error messages.

    Raises:
        InputError: for anything else, or numbers that are not finite.

    Example:
        >>> as_inputs([[1.0, 2.0]], torch.zeros(1), "X")
        Traceback (most recent call last):
        passes.errors.InputError: X, input 0: expected a Tensor or an array, got list

    """
    parts = list(given) if isinstance(given, list | tuple) else [given]
    return [_as_tensor(part, like, f"{what}, input {k}") for k, part in enumerate(parts)]


def _as_tensor(part: Any, like: Tensor | None, what: str) -> Tensor:
    if not isinstance(part, Tensor):
        array = part.to_numpy() if hasattr(part, "to_numpy") else part
        if not hasattr(array, "__array__"):
            raise InputError(f"{what}: expected a Tensor or an array, got {type(part).__name__}")
        part = torch.as_tensor(array)
        if like is not None and part.is_floating_point():
            part = part.to(like.dtype)
    tensor: Tensor = part.detach()
    if like is not None:
        tensor = tensor.to(like.device)
    if tensor.dim() == 0:
        raise InputError(f"{what}: expected the batch in dimension 0, got a number")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        row = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0]) if tensor.dim() > 1 else 0
        raise InputError(f"{what}: expected finite numbers, got NaN or infinity, first in row {row}")
    return tensor


def check_like(inputs: list[Tensor], data: list[Tensor], what: str, samples: int | None = None) -> None:
    """Raise InputError unless ``inputs`` fit the background.

    Args:
        inputs: what was given.
        data: the background.
        what: name of the argument for error messages.
        samples: number of samples, where each has references of its own.

    """
    if len(inputs) != len(data):
        raise InputError(f"{what}: expected {len(data)} inputs like the background, got {len(inputs)}")
    lead = 1 if samples is None else 2
    for k, (tensor, reference) in enumerate(zip(inputs, data, strict=True)):
        if tensor.shape[lead:] != reference.shape[1:]:
            raise InputError(
                f"{what}, input {k}: expected rows of shape {tuple(reference.shape[1:])} like the "
                f"background, got {tuple(tensor.shape[lead:])}"
            )
        if tensor.dtype != reference.dtype:
            raise InputError(
                f"{what}, input {k}: expected dtype {reference.dtype} like the background, got {tensor.dtype}"
            )
        if tensor.shape[:lead] != inputs[0].shape[:lead]:
            raise InputError(
                f"{what}, input {k}: expected {inputs[0].shape[0]} rows like input 0, got {tensor.shape[0]}"
            )
        if samples is not None and (tensor.shape[0] != samples or tensor.shape[1] == 0):
            raise InputError(
                f"{what}, input {k}: expected ({samples}, references, ...), references of each sample, got "
                f"shape {tuple(tensor.shape)}"
            )
