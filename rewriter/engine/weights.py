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

    def check_unwritten(self, versions: tuple[int, ...]) -> None:
        """Raise RewriteError if something was written to since the versions were these."""
        if self.versions() != versions:
            raise RewriteError(
                "the model's weights or buffers were written to while it was explained; stop training it "
                "for that time, or explain copy.deepcopy(model)"
            )

    def checksums(self) -> tuple[int, ...]:
        """Return a number for each tensor: ``parameter.data`` is written to without a new version."""
        return tuple(_checksum(tensor) for tensor in self._held)

    def __getstate__(self) -> dict[str, Any]:
        """Let a copy of the explainer stand by itself: the model is not copied with it."""
        return {"_model": None, "_shared": {}, "_held": self._held}


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Numbers whose products are held at once.
_CHUNK = 1 << 22


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a.detach(), b)


def _of(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def _checksum(tensor: Tensor) -> int:
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    elif tensor.layout != torch.strided:
        tensor = tensor.detach().to_dense()
    flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    # One number is contiguous with any stride, which no view takes.
    flat = flat.contiguous().as_strided((flat.numel(),), (1,))
    if flat.device.type == "cpu":
        return zlib.crc32(flat.view(torch.uint8).numpy().data)
    return _weighted_sum(flat)


def _weighted_sum(flat: Tensor) -> int:
    """Return a sum of the bits of all numbers, each times a number of its place, where that is computed best.

    Example:
        >>> one, other = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
        >>> _weighted_sum(one) == _weighted_sum(one.clone()), _weighted_sum(one) == _weighted_sum(other)
        (True, False)

    """
    bits = flat.view(_BITS[flat.element_size()])
    total = 0
    for begin in range(0, bits.numel(), _CHUNK):
        part = bits[begin : begin + _CHUNK].long()
        places = torch.arange(begin, begin + len(part), device=flat.device)
        # Odd and far from each other; the sum is taken modulo 2**64.
        total += int((part * (places * 0x5851F42D4C957F2D + 0x14057B7EF767814F)).sum())
    return total
