"""What puts numbers into places, of which several may be the same: the last number stays there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from passes.operations.contract import Lowering, Plain, Textbook, Varies, holds_nodes
from passes.operations.operation import function_named


def lower_unpool(space: int) -> Lowering:
    """Return what lowers ``F.max_unpool1d`` and its kind, whose places are known.

    Torch's gradient counts all numbers that are put into one place, of which the last one stays.
    """

    def lower(varies: Varies, /, input: Any, indices: Any, **options: Any) -> Textbook | None:
        if varies(indices) or holds_nodes({**options, "output_size": None}):
            return None
        unpool = partial(function_named(f"max_unpool{space}d"), **options)
        return Plain(partial(_unpooled, unpool, space)), (input, indices)

    return lower


def _unpooled(unpool: Callable[..., Any], space: int, x: Any, indices: Any) -> Any:
    line, places = (torch.flatten(each, -space) for each in (x, indices))
    numbers = torch.cumsum(torch.ones_like(line), -1)
    # Who stays is what torch itself says of numbers that differ.
    stays = unpool(numbers.reshape(x.shape), indices)
    owners = torch.flatten(stays, -space)
    kept = line * (torch.gather(owners, -1, places) == numbers)
    return torch.scatter_add(torch.zeros_like(owners), -1, places, kept).reshape(stays.shape)


def lower_strided_scatter(
    varies: Varies, input: Any, src: Any, size: Any, stride: Any, storage_offset: Any = None
) -> Textbook | None:
    """Lower ``torch.as_strided_scatter`` of what lies in memory in its own order, where code runs."""
    if not isinstance(input, Tensor) or not input.is_contiguous() or holds_nodes(size, stride):
        return None
    # It is counted in the memory, of which the tensor may be a part.
    first = 0 if storage_offset is None else int(storage_offset) - input.storage_offset()
    if (
        first < 0
        or first + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= input.numel()
    ):
        return None
    places = torch.arange(input.numel(), device=input.device).as_strided(tuple(size), tuple(stride), first)
    return Plain(partial(_written, places.reshape(-1))), (input, src)


def _written(places: Tensor, x: Any, source: Any) -> Any:
    return torch.index_copy(x.reshape(-1), 0, places, source.reshape(-1)).reshape(x.shape)
