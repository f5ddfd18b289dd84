"""Products of all elements along a dimension, as an atom."""

from __future__ import annotations

import torch
from torch import Tensor

from passes.leaves import Atom


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
