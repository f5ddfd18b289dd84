"""Variances and standard deviations as atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import Atom
from passes.operations.contract import Lowering, Textbook, Varies


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


def _variance(*, root: bool = False, mean: bool = False) -> Lowering:
    def lower(
        varies: Varies,
        input: Any,
        dim: Any = None,
        unbiased: Any = True,
        keepdim: Any = False,
        *,
        correction: Any = None,
        out: Any = None,
    ) -> Textbook | None:
        dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
        # Over all dimensions the rows of a batch are mixed.
        known = dims and all(type(each) is int for each in dims) and isinstance(keepdim, bool)
        taken = int(bool(unbiased)) if correction is None else correction
        if not known or out is not None or not isinstance(taken, int | float):
            return None
        if mean:
            return VarianceAndMean(dims, taken, keepdim, root), (input,)
        return Variance(dims, taken, keepdim, root), (input,)

    return lower


CALLS: Mapping[Any, Lowering] = {
    torch.var: _variance(),
    "var": _variance(),
    torch.std: _variance(root=True),
    "std": _variance(root=True),
    torch.var_mean: _variance(mean=True),
    torch.std_mean: _variance(root=True, mean=True),
}
