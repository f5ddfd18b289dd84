"""Calls and modules of maxima and minima, over dimensions and over windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.operations.contract import (
    Build,
    Lowering,
    Plain,
    Rule,
    Textbook,
    Varies,
    holds_nodes,
    known_dims,
    pulled,
)
from passes.operations.maxima.extrema import (
    Extremes,
    Extremum,
    ExtremumWithIndices,
    RunningExtremum,
    RunningWithIndices,
    SmallestAndLargest,
)
from passes.operations.maxima.pooling import AdaptiveMaxPool, MaxPool, PoolPlaces
from passes.operations.maxima.pooling_rule import pool_pull
from passes.operations.maxima.rule import extremum_pull, running_pull
from passes.operations.operation import Operation, function_named, nonlinear
from passes.operations.whole import is_whole, lower_whole
from passes.operations.without_slope.records import is_blank


def _extremum(function: str) -> Lowering:
    def lower(varies: Varies, input: Any, dim: Any = (), keepdim: Any = False) -> Textbook | None:
        if is_whole(dim):
            return lower_whole(partial(function_named(function), dim=-1), input, keepdim=keepdim)
        dims = known_dims(dim)
        if dims is None or not isinstance(keepdim, bool):
            return None
        return Extremum(function, dims if isinstance(dim, list | tuple) else dims[0], keepdim), (input,)

    return lower


def _extremum_or_pair(function: str, of_two: Callable[..., Tensor]) -> Lowering:
    def lower(
        varies: Varies, input: Any, dim: Any = None, keepdim: Any = False, other: Any = None
    ) -> Textbook | None:
        if other is not None:
            return Plain(of_two), (input, other)
        if isinstance(dim, Tensor | fx.Node):
            # A node may be a number that the model computes, unless it is a tensor for certain.
            tensor = isinstance(dim, Tensor) or varies(dim) or dim.op == "get_attr" or is_blank(dim.target)
            return (Plain(of_two), (input, dim)) if tensor else None
        if is_whole(dim):
            # The gradient at ties is that of amax, and so is the rule.
            return lower_whole(partial(function_named(f"a{function}"), dim=-1), input, keepdim=keepdim)
        known = type(dim) is int and isinstance(keepdim, bool)
        return (ExtremumWithIndices(function, dim, keepdim), (input,)) if known else None

    return lower


def _running(function: str) -> Lowering:
    def lower(varies: Varies, input: Any, dim: Any) -> Textbook | None:
        return (RunningWithIndices(function, dim), (input,)) if type(dim) is int else None

    return lower


def _aminmax(varies: Varies, input: Any, dim: Any = None, keepdim: Any = False) -> Textbook | None:
    if is_whole(dim):
        return lower_whole(_extremes_of_line, input, keepdim=keepdim)
    known = type(dim) is int and isinstance(keepdim, bool)
    return (SmallestAndLargest(dim, keepdim), (input,)) if known else None


def _extremes_of_line(x: Any) -> Extremes:
    return Extremes(torch.amin(x, -1), torch.amax(x, -1))


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
        if holds_nodes(kernel_size, stride, padding, dilation):
            return None
        atom = MaxPool(space, kernel_size, stride, padding, dilation, ceil_mode)
        return _with_places(atom, return_indices or always_indices), (input,)

    return lower


def _adaptive(space: int, *, always_indices: bool = False) -> Lowering:
    def lower(varies: Varies, input: Any, output_size: Any, return_indices: bool = False) -> Textbook | None:
        if holds_nodes(output_size):
            return None
        atom = AdaptiveMaxPool(space, output_size)
        return _with_places(atom, return_indices or always_indices), (input,)

    return lower


def _with_places(pool: MaxPool | AdaptiveMaxPool, wanted: bool) -> nn.Module:
    return PoolPlaces(pool) if wanted else pool


def _pool_module(space: int) -> Build:
    def build(module: Any) -> nn.Module:
        window = module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        return _with_places(MaxPool(space, *window), module.return_indices)

    return build


def _adaptive_module(space: int) -> Build:
    def build(module: Any) -> nn.Module:
        return _with_places(AdaptiveMaxPool(space, module.output_size), module.return_indices)

    return build


def _of_pools(space: int) -> tuple[Operation, ...]:
    window = "(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)"
    size = "(input, output_size, return_indices=False)"
    name, adaptive = f"max_pool{space}d", f"adaptive_max_pool{space}d"
    return (
        nonlinear(f"{name}{window}", lower=_pool(space)),
        nonlinear(f"{name}_with_indices{window}", lower=_pool(space, always_indices=True)),
        nonlinear(
            f"{adaptive}{size}",
            lower=_adaptive(space),
            # Of torch.adaptive_max_pool1d, and so on, and of aten's.
            lower_builtin=_adaptive(space, always_indices=True),
        ),
        nonlinear(f"{adaptive}_with_indices{size}", lower=_adaptive(space, always_indices=True)),
    )


CALLS: tuple[Operation, ...] = (
    nonlinear("amax(input, dim=(), keepdim=False)", lower=_extremum("amax")),
    nonlinear("amin(input, dim=(), keepdim=False)", lower=_extremum("amin")),
    nonlinear(
        "max(input, dim=None, keepdim=False, *, other=None)", lower=_extremum_or_pair("max", torch.maximum)
    ),
    nonlinear(
        "min(input, dim=None, keepdim=False, *, other=None)", lower=_extremum_or_pair("min", torch.minimum)
    ),
    nonlinear("aminmax(input, dim=None, keepdim=False)", lower=_aminmax),
    nonlinear("cummax(input, dim)", lower=_running("cummax")),
    nonlinear("cummin(input, dim)", lower=_running("cummin")),
    *_of_pools(1),
    *_of_pools(2),
    *_of_pools(3),
)
MODULES: Mapping[type[nn.Module], Build] = {
    nn.MaxPool1d: _pool_module(1),
    nn.MaxPool2d: _pool_module(2),
    nn.MaxPool3d: _pool_module(3),
    nn.AdaptiveMaxPool1d: _adaptive_module(1),
    nn.AdaptiveMaxPool2d: _adaptive_module(2),
    nn.AdaptiveMaxPool3d: _adaptive_module(3),
}
RULES: Mapping[type[nn.Module], Rule] = {
    Extremum: pulled(extremum_pull),
    RunningExtremum: pulled(running_pull),
    MaxPool: pulled(pool_pull),
    AdaptiveMaxPool: pulled(pool_pull),
}
