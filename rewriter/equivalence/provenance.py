"""With what a comparison was made: versions, and the weights of a model."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rewriter.version import __version__


def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on.

    Example:
        >>> list(versions())
        ['python', 'torch', 'rewriter']

    """
    return {"python": platform.python_version(), "torch": torch.__version__, "rewriter": __version__}


def hash_of_weights(model: nn.Module) -> str:
    """Return SHA-256 of the names, shapes, dtypes and numbers of all parameters and buffers.

    It does not depend on the device, or on the order in which they were registered.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = hash_of_weights(model)
        >>> with torch.no_grad():
        ...     _ = model.weight[0, 0].add_(1)
        >>> before == hash_of_weights(model)
        False

    """
    return hash_of_tensors(
        (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    )


def hash_of_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return SHA-256 of the names, shapes, dtypes and numbers of tensors, in whatever order they come.

    Example:
        >>> hash_of_tensors([("x", torch.zeros(2))]) == hash_of_tensors([("x", torch.zeros(3))])
        False

    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda each: each[0]):
        digest.update(f"{name} {_described(tensor)};".encode())
        digest.update(_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def _described(tensor: Tensor) -> str:
    return "without a shape" if is_lazy(tensor) else f"{tensor.dtype} {tuple(tensor.shape)}"


def _bytes(tensor: Tensor) -> bytes:
    # Of what has no numbers its name and shape are all there is.
    if is_lazy(tensor) or tensor.is_meta:
        return b""
    plain = tensor.detach().cpu()
    if plain.is_quantized:
        plain = plain.int_repr()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.resolve_conj().resolve_neg().contiguous()
    # One number is contiguous with any stride, which no view takes.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
