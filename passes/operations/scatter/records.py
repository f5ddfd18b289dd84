"""Calls that reduce groups. Sums and means are linear; maxima and products become those over a dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.operations.contract import Build, Lowering, Plain, Rule, Textbook, Varies, is_plain, rank_of
from passes.operations.operation import NO_RULE, Kind, Operation, described, nonlinear
from passes.operations.scatter.bags import lower_embedding_bag
from passes.operations.scatter.grouped import ALIASES, REDUCTIONS, along_index, scattered, segmented
from passes.operations.scatter.unpooling import lower_strided_scatter, lower_unpool


def lower_grouped(reduce_groups: Callable[..., Any]) -> Lowering:
    """Return what lowers a reduction of groups that an index names."""

    def lower(
        varies: Varies,
        input: Any,
        dim: Any,
        index: Any,
        src: Any = None,
        reduce: Any = None,
        include_self: Any = True,
    ) -> Textbook | None:
        name = {"add": "sum"}.get(reduce, ALIASES.get(reduce, reduce))
        if name not in (*REDUCTIONS, "mean") or type(dim) is not int or not isinstance(include_self, bool):
            return None
        if not isinstance(src, Tensor | fx.Node):
            return None
        return Plain(partial(reduce_groups, name, include_self, dim)), (input, index, src)

    return lower


def _along_index(
    varies: Varies, input: Any, dim: Any, index: Any, source: Any, reduce: Any, include_self: Any = True
) -> Textbook | None:
    lower = lower_grouped(along_index)
    return lower(varies, input, dim, index, source, reduce, include_self)


def _segments(
    varies: Varies,
    data: Any,
    reduce: Any,
    lengths: Any = None,
    indices: Any = None,
    offsets: Any = None,
    axis: Any = 0,
    unsafe: Any = False,
    initial: Any = None,
) -> Textbook | None:
    if indices is not None or type(axis) is not int or not is_plain(initial) or not isinstance(reduce, str):
        return None
    given = lengths if offsets is None else offsets
    rank = rank_of(data)
    if axis != 0 and rank is None:
        return None

    def reduced(x: Any, given: Any) -> Any:
        bounds = given
        if offsets is None:
            bounds = torch.cat([torch.zeros_like(given[..., :1]), torch.cumsum(given, -1)], -1)
        return segmented(reduce, initial, x, bounds, axis, rank or 1)

    return Plain(reduced), (data, given)


def _nothing(varies: Varies, /, **arguments: Any) -> None:
    return None


CALLS: tuple[Operation, ...] = (
    nonlinear(
        "scatter_reduce(input, dim, index, src, reduce, *, include_self=True)", lower=lower_grouped(scattered)
    ),
    nonlinear("index_reduce(input, dim, index, source, reduce, *, include_self=True)", lower=_along_index),
    nonlinear(
        "segment_reduce(data, reduce, *, lengths=None, indices=None, offsets=None, axis=0, unsafe=False,"
        " initial=None)",
        lower=_segments,
    ),
    # Linear, but for two of its reductions.
    described(
        "scatter(input, dim, index, src, *, reduce=None)",
        Kind.LINEAR,
        fixed=("index",),
        unless={"reduce": NO_RULE},
        lower=lower_grouped(scattered),
        fresh=True,
    ),
    *(
        nonlinear(
            f"max_unpool{space}d(input, indices, kernel_size, stride=None, padding=0, output_size=None)",
            lower=lower_unpool(space),
        )
        for space in (1, 2, 3)
    ),
    nonlinear(
        "as_strided_scatter(input, src, size, stride, storage_offset=None)", lower=lower_strided_scatter
    ),
    nonlinear(
        "embedding_bag(input, weight, offsets=None, max_norm=None, norm_type=2, scale_grad_by_freq=False,"
        " mode='mean', sparse=False, per_sample_weights=None, include_last_offset=False, padding_idx=None)",
        builtin="weight, input, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights,"
        " include_last_offset, padding_idx",
        renamed={"indices": "input"},
        lower=lower_embedding_bag,
        # It returns more.
        lower_builtin=_nothing,
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {}
# All of it is made of other families.
RULES: Mapping[type[nn.Module], Rule] = {}
