"""Lengths that are made of others: between tensors, between the rows of one, of windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.operations.contract import Build, Lowering, Plain, Textbook, Varies, holds_nodes, is_number

_POOLS: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def lower_dist(varies: Varies, input: Any, other: Any, p: Any = 2.0) -> Textbook | None:
    """Lower ``torch.dist``."""
    return (Plain(partial(_length_between, p)), (input, other)) if is_number(p) else None


def _length_between(p: float, a: Any, b: Any) -> Any:
    return torch.linalg.vector_norm(a - b, p)


def lower_pdist(varies: Varies, input: Any, p: Any = 2.0) -> Textbook | None:
    """Lower ``F.pdist``; in a graph its rows would be those of the batch."""
    known = isinstance(input, Tensor) and is_number(p)
    return (Plain(partial(_lengths_between, p)), (input,)) if known else None


def _lengths_between(p: float, x: Any) -> Any:
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1)
    return torch.linalg.vector_norm(x[first] - x[second], p, -1)


def lower_power_pool(space: int) -> Lowering:
    """Return what lowers ``F.lp_pool1d`` and its kind: a power of the sum of the powers in each window."""

    def lower(
        varies: Varies,
        input: Any,
        norm_type: Any,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: Any = False,
    ) -> Textbook | None:
        if not is_number(norm_type) or holds_nodes(kernel_size, stride, ceil_mode):
            return None
        return Plain(partial(_pooled, space, norm_type, kernel_size, stride, ceil_mode)), (input,)

    return lower


def _pooled(space: int, order: float, kernel_size: Any, stride: Any, ceil_mode: bool, x: Any) -> Any:
    sizes = kernel_size if isinstance(kernel_size, list | tuple) else [kernel_size] * space
    means = _POOLS[space](torch.pow(x, order), kernel_size, stride, 0, ceil_mode)
    return torch.pow(means * math.prod(sizes), 1 / order)


def build_power_pool(space: int) -> Build:
    """Return what builds ``nn.LPPool1d`` and its kind."""

    def build(module: Any) -> nn.Module | None:
        given = float(module.norm_type), module.kernel_size, module.stride, module.ceil_mode
        return Plain(partial(_pooled, space, *given))

    return build
