"""Softmax and its kin along a dimension, as atoms.

Each is one atom, not a chain of exponentials, sums and products: so it never overflows, a mask of minus
infinities goes through it, and its rule can be invariant to what softmax is invariant to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom


def dim_from_end(dim: int | None, dims: int) -> int:
    """Return a dimension of a tensor of ``dims`` dimensions as a negative number.

    None is the one that torch takes where a call of softmax names none.

    Example:
        >>> dim_from_end(1, 4), dim_from_end(-1, 4), dim_from_end(None, 3), dim_from_end(None, 2)
        (-3, -1, -3, -1)

    """
    if dim is None:
        dim = 0 if dims in (0, 1, 3) else 1
    return dim - dims if dim >= 0 else dim


class SoftmaxAtom(Atom, nn.Softmax):
    """``exp(x)`` over its sum along a dimension.

    Args:
        dim: None for the one that torch takes.
        dtype: to which the input is brought first, as in :func:`torch.softmax`.

    Example:
        >>> SoftmaxAtom(-1)(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])

    """

    def __init__(self, dim: int | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dim)
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return the softmax of ``input``, any shape."""
        return F.softmax(input, dim_from_end(self.dim, input.dim()), dtype=self.dtype)


class LogSoftmaxAtom(Atom, nn.LogSoftmax):
    """Logarithm of softmax along a dimension.

    Args:
        dim: None for the one that torch takes.
        dtype: to which the input is brought first, as in :func:`torch.log_softmax`.

    Example:
        >>> LogSoftmaxAtom(-1)(torch.zeros(1, 2))
        tensor([[-0.6931, -0.6931]])

    """

    def __init__(self, dim: int | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dim)
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return the logarithm of the softmax of ``input``, any shape."""
        return F.log_softmax(input, dim_from_end(self.dim, input.dim()), dtype=self.dtype)


class LogSumExp(Atom):
    """Logarithm of the sum of exponentials along dimensions.

    Args:
        dim: the dimensions that are summed over.
        keepdim: keep them with size 1.

    Example:
        >>> LogSumExp((-1,))(torch.zeros(1, 2))
        tensor([0.6931])

    """

    def __init__(self, dim: tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the logarithm of the sum of ``exp(input)``, any shape."""
        return torch.logsumexp(input, self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Show the dimensions."""
        return f"dim={self.dim}, keepdim={self.keepdim}"


class RunningLogSumExp(Atom):
    """Logarithm of the sum of exponentials along a dimension, up to each element.

    Args:
        dim: the dimension.

    Example:
        >>> RunningLogSumExp(-1)(torch.zeros(1, 2))
        tensor([[0.0000, 0.6931]])

    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the running logarithm of the sum of ``exp(input)``, any shape."""
        return torch.logcumsumexp(input, self.dim)

    def extra_repr(self) -> str:
        """Show the dimension."""
        return f"dim={self.dim}"


class SoftminAtoms(nn.Module):
    """``nn.Softmin``: softmax of the negative.

    Args:
        dim: None for the one that torch takes.
        dtype: to which the input is brought first.

    Example:
        >>> SoftminAtoms(-1)(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])

    """

    def __init__(self, dim: int | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.softmax = SoftmaxAtom(dim, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the softmax of ``-input``, any shape."""
        output: Tensor = self.softmax(-input)
        return output
