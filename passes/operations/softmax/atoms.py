"""Softmax and its kin along a dimension, as atoms.

Each is one atom, not a chain of exponentials, sums and products: so it never overflows, a mask of minus
infinities goes through it, and its rule can be invariant to what softmax is invariant to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.contract import Build, Lowering, Textbook, Varies


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


def _along(build: type[SoftmaxAtom] | type[LogSoftmaxAtom] | type[SoftminAtoms]) -> Lowering:
    """Take the arguments of the functions in torch and of the methods."""

    def lower(
        varies: Varies,
        input: Any,
        dim: Any = None,
        dtype: torch.dtype | None = None,
        *,
        out: Any = None,
        _stacklevel: int = 3,
    ) -> Textbook | None:
        # A dimension that is itself computed is not known here.
        known = (dim is None or isinstance(dim, int)) and (dtype is None or isinstance(dtype, torch.dtype))
        return (build(dim, dtype), (input,)) if known and out is None else None

    return lower


def _functional(build: type[SoftmaxAtom] | type[LogSoftmaxAtom] | type[SoftminAtoms]) -> Lowering:
    """Take the arguments of the functions in torch.nn.functional."""
    along = _along(build)

    def lower(
        varies: Varies, input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Textbook | None:
        return along(varies, input, dim, dtype)

    return lower


def _logsumexp(
    varies: Varies, input: Any, dim: Any, keepdim: Any = False, *, out: Any = None
) -> Textbook | None:
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    known = dims and all(isinstance(each, int) for each in dims) and isinstance(keepdim, bool)
    return (LogSumExp(dims, keepdim), (input,)) if known and out is None else None


CALLS: Mapping[Any, Lowering] = {
    torch.softmax: _along(SoftmaxAtom),
    torch.special.softmax: _along(SoftmaxAtom),
    "softmax": _along(SoftmaxAtom),
    F.softmax: _functional(SoftmaxAtom),
    torch.log_softmax: _along(LogSoftmaxAtom),
    torch.special.log_softmax: _along(LogSoftmaxAtom),
    "log_softmax": _along(LogSoftmaxAtom),
    F.log_softmax: _functional(LogSoftmaxAtom),
    F.softmin: _functional(SoftminAtoms),
    torch.logsumexp: _logsumexp,
    torch.special.logsumexp: _logsumexp,
    "logsumexp": _logsumexp,
}

MODULES: Mapping[type[nn.Module], Build] = {
    nn.Softmax: lambda module: SoftmaxAtom(module.dim),
    nn.LogSoftmax: lambda module: LogSoftmaxAtom(module.dim),
    nn.Softmin: lambda module: SoftminAtoms(module.dim),
    nn.Softmax2d: lambda module: SoftmaxAtom(-3),
}
