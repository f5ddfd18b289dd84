"""The weights that a linked copy shares with the user's model: whether they changed, or were replaced."""

from __future__ import annotations

import itertools
import weakref
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError


class SharedWeights:
    """Weights and buffers of a model, and of the copy that shares their memory.

    Args:
        model: the user's.
        copy: made of it.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> weights = SharedWeights(model, model)
        >>> weights.check()
        >>> model.weight = nn.Parameter(torch.zeros(1, 2))
        >>> weights.check()
        Traceback (most recent call last):
        passes.errors.RewriteError: weight: replaced since the explainer was made, ...

    """

    def __init__(self, model: nn.Module, copy: nn.Module) -> None:
        self._model: weakref.ref[nn.Module] | None = weakref.ref(model)
        self._shared = {name: tensor.detach() for name, tensor in _named(model)}
        # To walk through the modules takes longer than the rest; the copy is never changed.
        self._held = tuple(itertools.chain(copy.parameters(), copy.buffers()))

    def check(self) -> None:
        """Raise RewriteError if the model has other weights by now than its copy."""
        model = None if self._model is None else self._model()
        if model is None:
            return
        for name, tensor in _named(model):
            shared = self._shared.get(name)
            if shared is None or _same_memory(tensor, shared):
                continue
            if not _equal(tensor, shared):
                raise RewriteError(
                    f"{name}: replaced since the explainer was made, by {_of(tensor)} in the place of "
                    f"{_of(shared)}, as .to(...), .double() or load_state_dict(assign=True) do; make a new "
                    "explainer of the model as it is now"
                )

    def versions(self) -> tuple[int, ...]:
        """Return what changes whenever weights are written to by an operation of torch's."""
        return tuple(-1 if tensor.is_inference() else tensor._version for tensor in self._held)

    def checksums(self) -> tuple[float, ...]:
        """Return a number for each tensor: ``parameter.data`` is written to without a new version."""
        return tuple(_checksum(tensor) for tensor in self._held)

    def __getstate__(self) -> dict[str, Any]:
        """Let a copy of the explainer stand by itself: the model is not copied with it."""
        return {"_model": None, "_shared": {}, "_held": self._held}


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a.detach(), b)


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def _checksum(tensor: Tensor) -> float:
    if tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous():
        return zlib.crc32(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    return float(tensor.detach().double().sum())
