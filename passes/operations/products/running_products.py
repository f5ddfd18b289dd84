"""Products of all elements along a dimension, as an atom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom
from passes.operations.contract import Lowering, Textbook, Varies


class RunningProduct(Atom):
    """The product along a dimension, up to each element or of all.

    Args:
        dim: the dimension.
        cumulative: return the product up to each element, rather than the last.
        keepdim: keep the dimension with size 1.

    Example:
        >>> RunningProduct(-1)(torch.tensor([[2.0, 3.0]])), RunningProduct(-1, True)(torch.tensor([2.0, 3.0]))
        (tensor([6.]), tensor([2., 6.]))

    """

    def __init__(self, dim: int, cumulative: bool = False, keepdim: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.cumulative = cumulative
        self.keepdim = keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of ``input``, any shape."""
        if self.cumulative:
            return torch.cumprod(input, self.dim)
        return torch.prod(input, self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.dim}, cumulative={self.cumulative}, keepdim={self.keepdim}"


def _prod(
    varies: Varies, input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
) -> Textbook | None:
    if type(dim) is not int or not isinstance(keepdim, bool) or dtype is not None:
        # Over all dimensions, rows of the batch would be multiplied.
        return None
    return RunningProduct(dim, keepdim=keepdim), (input,)


def _cumprod(varies: Varies, input: Any, dim: Any, *, dtype: Any = None) -> Textbook | None:
    if type(dim) is not int or dtype is not None:
        return None
    return RunningProduct(dim, cumulative=True), (input,)


CALLS: Mapping[Any, Lowering] = {
    torch.prod: _prod,
    "prod": _prod,
    torch.cumprod: _cumprod,
    "cumprod": _cumprod,
}
