"""Lengths of vectors, and vectors scaled to length 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom


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


def norm_of_order(order: float, dims: tuple[int, ...], keepdim: bool, x: Any) -> Any:
    """Return a norm of any order, made of powers and a sum, or of the smallest absolute value.

    Example:
        >>> (norm_of_order(3.0, (-1,), False, torch.tensor([1.0, -2.0])) ** 3).round()
        tensor(9.)

    """
    size = torch.abs(x)
    if order == -math.inf:
        return torch.amin(size, dims, keepdim)
    if order == 0:
        return torch.sign(size).sum(dims, keepdim)
    return torch.pow(torch.pow(size, order).sum(dims, keepdim), 1 / order)


def normalized(order: float, dims: tuple[int, ...], eps: float, x: Any) -> Any:
    """Return vectors over their norm of any order, at least ``eps``.

    Example:
        >>> normalized(math.inf, (-1,), 1e-12, torch.tensor([1.0, -2.0]))
        tensor([ 0.5000, -1.0000])

    """
    return x / torch.clamp_min(torch.linalg.vector_norm(x, order, dims, True), eps)
