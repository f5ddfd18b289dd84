"""Lengths of vectors, and vectors scaled to length 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.contract import Lowering, Textbook, Varies


class VectorNorm(Atom):
    """Sum of absolute values, or the root of the sum of squares.

    Args:
        order: 1 or 2.
        dim: the dimensions that are summed over.
        keepdim: keep them with size 1.
        dtype: to which the input is brought first.

    Example:
        >>> VectorNorm(2, (-1,))(torch.tensor([[3.0, 4.0]]))
        tensor([5.])

    """

    def __init__(
        self, order: int, dim: tuple[int, ...], keepdim: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.order = order
        self.dim = dim
        self.keepdim = keepdim
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return the norm of ``input``, any shape."""
        norm: Tensor = torch.linalg.vector_norm(input, self.order, self.dim, self.keepdim, dtype=self.dtype)
        return norm

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.order}, dim={self.dim}, keepdim={self.keepdim}"


class Normalize(Atom):
    """A vector divided by its norm, which counts as ``eps`` at least.

    Args:
        order: 1 or 2.
        dim: the dimensions of the vector.
        eps: the smallest divisor.

    Example:
        >>> Normalize(2, (-1,))(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])

    """

    def __init__(self, order: int, dim: tuple[int, ...], eps: float = 1e-12) -> None:
        super().__init__()
        self.order = order
        self.dim = dim
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` with norm 1, any shape."""
        # torch passes a tuple of dimensions on, too.
        return F.normalize(input, self.order, self.dim, self.eps)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.order}, dim={self.dim}, eps={self.eps}"


class LargestAbsolute(nn.Module):
    """The norm of infinite order: the largest absolute value.

    Args:
        dim: the dimensions it is taken of.
        keepdim: keep them with size 1.

    Example:
        >>> LargestAbsolute((-1,), False)(torch.tensor([[3.0, -4.0]]))
        tensor([4.])

    """

    def __init__(self, dim: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dim = dim
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the norm of ``input``, any shape; the two calls become atoms in their turn."""
        return input.abs().amax(self.dim, self.keepdim)


def _dims(dim: Any) -> tuple[int, ...] | None:
    """Return the dimensions, None if they are not known or all: those of a batch would be mixed."""
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    return dims if dims and all(type(each) is int for each in dims) else None


def _vector(order: Any, dim: Any, keepdim: Any, dtype: Any, out: Any, input: Any) -> Textbook | None:
    dims = _dims(dim)
    known = dims and isinstance(keepdim, bool) and (dtype is None or isinstance(dtype, torch.dtype))
    if not known or dims is None or out is not None or order not in (1, 2, math.inf):
        return None
    if order == math.inf:
        return (LargestAbsolute(dims, keepdim), (input,)) if dtype is None else None
    return VectorNorm(int(order), dims, keepdim, dtype), (input,)


def _norm(
    varies: Varies,
    input: Any,
    p: Any = "fro",
    dim: Any = None,
    keepdim: Any = False,
    out: Any = None,
    dtype: Any = None,
) -> Textbook | None:
    return _vector(2 if p in ("fro", None) else p, dim, keepdim, dtype, out, input)


def _vector_norm(
    varies: Varies,
    x: Any,
    ord: Any = 2,
    dim: Any = None,
    keepdim: Any = False,
    *,
    dtype: Any = None,
    out: Any = None,
) -> Textbook | None:
    return _vector(ord, dim, keepdim, dtype, out, x)


def _linalg_norm(
    varies: Varies,
    input: Any,
    ord: Any = None,
    dim: Any = None,
    keepdim: Any = False,
    *,
    out: Any = None,
    dtype: Any = None,
) -> Textbook | None:
    matrix = isinstance(dim, list | tuple) and len(dim) > 1
    if matrix and ord not in (None, "fro"):
        return None
    return _vector(2 if ord in (None, "fro") else ord, dim, keepdim, dtype, out, input)


def _normalize(
    varies: Varies, input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12, out: Any = None
) -> Textbook | None:
    dims = _dims(dim)
    if dims is None or out is not None or p not in (1, 2) or not isinstance(eps, float):
        return None
    return Normalize(int(p), dims, eps), (input,)


CALLS: Mapping[Any, Lowering] = {
    torch.norm: _norm,
    "norm": _norm,
    torch.linalg.norm: _linalg_norm,
    torch.linalg.vector_norm: _vector_norm,
    F.normalize: _normalize,
}
