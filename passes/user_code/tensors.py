"""Copies of tensors that share memory with each other as the originals do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TensorCopies:
    """Makes one copy of each tensor that it is asked for.

    Example:
        >>> copies, whole = TensorCopies(), torch.zeros(3)
        >>> first, part = copies(whole), copies(whole[:2])
        >>> part.add_(1)
        tensor([1., 1.])
        >>> first, whole
        (tensor([1., 1., 0.]), tensor([0., 0., 0.]))

    """

    def __init__(self) -> None:
        # The originals are held, so that no other tensor gets their address.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._originals: dict[int, Tensor] = {}
        self._states: dict[int, tuple[int, ...]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the copy of ``tensor``; a parameter's is a parameter."""
        if id(tensor) not in self._copies:
            copy = self._copied(tensor)
            if isinstance(tensor, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
            elif tensor.requires_grad and tensor.is_leaf:
                copy.requires_grad_()
            self._copies[id(tensor)] = tensor, copy
            self._originals[id(copy)] = tensor
            self._states[id(copy)] = _written_state(copy)
        return self._copies[id(tensor)][1]

    def is_written(self, copy: Tensor) -> bool:
        """Whether a copy was written to, or given new data."""
        original = self._originals.get(id(copy))
        if original is None:
            return False
        if self._states[id(copy)] != _written_state(copy):
            return True
        # What is written by ``.data``, or by numpy, leaves no version.
        plain = not copy.is_meta and not copy.is_quantized
        return plain and not all(map(_same_bytes, parts_in_memory(copy), parts_in_memory(original)))

    def _copied(self, tensor: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            if type(tensor) not in (Tensor, nn.Parameter) or not _is_plain(tensor):
                return tensor.detach().clone()
            storage = tensor.untyped_storage()
            own = self._storages.get(storage.data_ptr())
            if own is None:
                own = self._storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
            empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            return empty.set_(own, tensor.storage_offset(), tensor.shape, tensor.stride())


def parts_in_memory(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that lie in memory of which one is made: itself, or the parts of a sparse one.

    Example:
        >>> [each.tolist() for each in parts_in_memory(torch.eye(2).to_sparse())]
        [[[0, 1], [0, 1]], [1.0, 1.0]]

    """
    plain = tensor.detach()
    if tensor.layout == torch.sparse_coo:
        return plain._indices(), plain._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return plain.crow_indices(), plain.col_indices(), plain.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return plain.ccol_indices(), plain.row_indices(), plain.values()
    return (plain,)


def _written_state(tensor: Tensor) -> tuple[int, ...]:
    held = parts_in_memory(tensor)
    return tensor._version, *(each.data_ptr() for each in held if each.layout == torch.strided)


def _is_plain(tensor: Tensor) -> bool:
    ordinary = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)
    return ordinary and not (tensor.is_conj() or tensor.is_neg()) and tensor.data_ptr() != 0


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    # NaN equals nothing.
    return bool(((a == b) | ((a != a) & (b != b))).all())
