"""Max pooling as atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom, Layout

_POOLS: Mapping[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
# Values and places, beside the atom.
_POOLS_WITH_PLACES: Mapping[int, Callable[..., Any]] = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}
_ADAPTIVE_WITH_PLACES: Mapping[int, Callable[..., Any]] = {
    1: torch.adaptive_max_pool1d,
    2: torch._C._nn.adaptive_max_pool2d,
    3: torch._C._nn.adaptive_max_pool3d,
}
_ADAPTIVE: Mapping[int, Callable[..., Any]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}
Sizes = int | tuple[int | None, ...] | None


class MaxPool(Atom):
    """Largest element of each window of the last dimensions.

    Args:
        space: how many dimensions, 1 to 3.
        kernel_size: as for ``nn.MaxPool1d``, and so on.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        ceil_mode: likewise.

    Example:
        >>> MaxPool(1, 2)(torch.tensor([[1.0, 3.0, 5.0, 2.0]]))
        tensor([[3., 5.]])

    """

    def __init__(
        self,
        space: int,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None or stride in ((), []) else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def options(self) -> tuple[Any, ...]:
        """Return what follows the input in the arguments of torch's functions."""
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, (B, C, *space) or (C, *space)."""
        pooled: Tensor = _POOLS[self.space](input, *self.options())
        return pooled

    def places(self, input: Tensor) -> Tensor:
        """Return where in ``input`` each value was found, as torch counts it."""
        with torch._C.DisableTorchFunction():
            indices: Tensor = _POOLS_WITH_PLACES[self.space](input, *self.options())[1]
        return indices

    def extra_repr(self) -> str:
        """Show the window."""
        return (
            f"{self.space}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class AdaptiveMaxPool(Atom):
    """Largest element of each of a given number of windows of the last dimensions.

    Args:
        space: how many dimensions, 1 to 3.
        output_size: how many windows in each.

    Example:
        >>> AdaptiveMaxPool(1, 1)(torch.tensor([[1.0, 3.0, 2.0]]))
        tensor([[3.]])

    """

    def __init__(self, space: int, output_size: Sizes) -> None:
        super().__init__()
        self.space = space
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        """Pool ``input``, (B, C, *space) or (C, *space)."""
        pooled: Tensor = _ADAPTIVE[self.space](input, self.output_size)
        return pooled

    def places(self, input: Tensor) -> Tensor:
        """Return where in ``input`` each value was found, as torch counts it."""
        given = self.output_size
        sizes = given if isinstance(given, tuple | list) else (given,) * self.space
        # None keeps a size, which only torch.nn.functional looks up.
        known = [size or input.shape[k - self.space] for k, size in enumerate(sizes)]
        with torch._C.DisableTorchFunction():
            indices: Tensor = _ADAPTIVE_WITH_PLACES[self.space](input, known)[1]
        return indices

    def extra_repr(self) -> str:
        """Show the number of windows."""
        return f"{self.space}, output_size={self.output_size}"


class Places(Layout):
    """Where a pool finds its values.

    Args:
        pool: the atom that finds the values.

    """

    def __init__(self, pool: MaxPool | AdaptiveMaxPool) -> None:
        super().__init__()
        # Not a submodule: it is one already, beside this.
        self.find = pool.places

    def forward(self, input: Tensor) -> Tensor:
        """Return the indices."""
        return self.find(input)


class PoolPlaces(nn.Module):
    """A pool that returns also where it finds its values.

    Args:
        pool: the atom that finds the values.

    """

    def __init__(self, pool: MaxPool | AdaptiveMaxPool) -> None:
        super().__init__()
        self.pool = pool
        self.places = Places(pool)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and indices."""
        return self.pool(input), self.places(input)
