"""Variances and standard deviations as atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passes.leaves import Atom


class Variance(Atom):
    """Variance along dimensions, or its square root.

    Args:
        dim: the dimensions.
        correction: taken off their number.
        keepdim: keep them with size 1.
        root: return the standard deviation.

    Example:
        >>> Variance((-1,), correction=0)(torch.tensor([[-2.0, 2.0]]))
        tensor([4.])

    """

    def __init__(
        self, dim: tuple[int, ...], correction: float = 1, keepdim: bool = False, root: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.correction = correction
        self.keepdim = keepdim
        self.root = root

    def forward(self, input: Tensor) -> Tensor:
        """Return the variance of ``input``, any shape."""
        function = torch.std if self.root else torch.var
        return function(input, self.dim, correction=self.correction, keepdim=self.keepdim)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"dim={self.dim}, correction={self.correction}, keepdim={self.keepdim}, root={self.root}"


class VarianceAndMean(nn.Module):
    """``torch.var_mean`` and ``torch.std_mean``; arguments as for :class:`Variance`."""

    def __init__(self, dim: tuple[int, ...], correction: float, keepdim: bool, root: bool) -> None:
        super().__init__()
        self.dim = dim
        self.keepdim = keepdim
        self.variance = Variance(dim, correction, keepdim, root)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, as the function does."""
        return self.variance(input), input.mean(self.dim, self.keepdim)
