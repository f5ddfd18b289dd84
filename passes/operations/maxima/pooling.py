"""Max pooling as atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.contract import Build, Lowering, Textbook, Varies

_POOLS: Mapping[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
# Values and places, under names that :data:`CALLS` does not know.
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
        indices: Tensor = _ADAPTIVE_WITH_PLACES[self.space](input, known)[1]
        return indices

    def extra_repr(self) -> str:
        """Show the number of windows."""
        return f"{self.space}, output_size={self.output_size}"


class PoolPlaces(nn.Module):
    """Where a pool finds its values: a step.

    Args:
        pool: the atom that finds the values.

    """

    def __init__(self, pool: MaxPool | AdaptiveMaxPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and indices."""
        return self.pool(input), self.pool.places(input)


def _textbook(pool: MaxPool | AdaptiveMaxPool, return_indices: bool) -> nn.Module:
    return PoolPlaces(pool) if return_indices else pool


def _pool(space: int, *, always_indices: bool = False) -> Lowering:
    def lower(
        varies: Varies,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Textbook | None:
        if _holds_nodes(kernel_size, stride, padding, dilation):
            return None
        atom = MaxPool(space, kernel_size, stride, padding, dilation, ceil_mode)
        return _textbook(atom, return_indices or always_indices), (input,)

    return lower


def _adaptive(space: int, *, always_indices: bool = False) -> Lowering:
    def lower(varies: Varies, input: Any, output_size: Any, return_indices: bool = False) -> Textbook | None:
        if _holds_nodes(output_size):
            return None
        return _textbook(AdaptiveMaxPool(space, output_size), return_indices or always_indices), (input,)

    return lower


def _holds_nodes(*options: Any) -> bool:
    """Whether the model computes a window's size."""
    found: list[fx.Node] = []
    fx.node.map_arg(options, found.append)
    return bool(found)


CALLS: Mapping[Any, Lowering] = {
    F.max_pool1d: _pool(1),
    F.max_pool2d: _pool(2),
    F.max_pool3d: _pool(3),
    torch.max_pool1d: _pool(1),
    torch.max_pool2d: _pool(2),
    torch.max_pool3d: _pool(3),
    F.max_pool1d_with_indices: _pool(1, always_indices=True),
    F.max_pool2d_with_indices: _pool(2, always_indices=True),
    F.max_pool3d_with_indices: _pool(3, always_indices=True),
    F.adaptive_max_pool1d: _adaptive(1),
    F.adaptive_max_pool2d: _adaptive(2),
    F.adaptive_max_pool3d: _adaptive(3),
    F.adaptive_max_pool1d_with_indices: _adaptive(1, always_indices=True),
    F.adaptive_max_pool2d_with_indices: _adaptive(2, always_indices=True),
    F.adaptive_max_pool3d_with_indices: _adaptive(3, always_indices=True),
}


def _pool_module(space: int) -> Build:
    def build(module: Any) -> nn.Module:
        atom = MaxPool(
            space, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )
        return _textbook(atom, module.return_indices)

    return build


def _adaptive_module(space: int) -> Build:
    return lambda module: _textbook(AdaptiveMaxPool(space, module.output_size), module.return_indices)


MODULES: Mapping[type[nn.Module], Build] = {
    nn.MaxPool1d: _pool_module(1),
    nn.MaxPool2d: _pool_module(2),
    nn.MaxPool3d: _pool_module(3),
    nn.AdaptiveMaxPool1d: _adaptive_module(1),
    nn.AdaptiveMaxPool2d: _adaptive_module(2),
    nn.AdaptiveMaxPool3d: _adaptive_module(3),
}
