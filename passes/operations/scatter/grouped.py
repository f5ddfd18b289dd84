"""Maxima, minima and products of groups, each as one over all elements with those of others left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: By the name of a reduction: what computes it over the last dimension, and the number that changes nothing.
REDUCTIONS: Mapping[str, tuple[Callable[[Any], Any], float]] = {
    "amax": (lambda x: torch.amax(x, -1), -math.inf),
    "amin": (lambda x: torch.amin(x, -1), math.inf),
    "prod": (lambda x: torch.prod(x, -1), 1.0),
    "sum": (lambda x: x.sum(-1), 0.0),
}
#: Other names of them.
ALIASES: Mapping[str, str] = {"max": "amax", "min": "amin", "multiply": "prod"}


def scattered(reduction: str, include_self: bool, dim: int, input: Any, index: Any, source: Any) -> Any:
    """Reduce the elements of ``source`` that an index sends to one place.

    Args:
        reduction: of :data:`REDUCTIONS`.
        include_self: whether what stands in the place is one of them.
        dim: along which places are named.
        input: what stands in the places; nothing else is sent to some of them.
        index: of the places, of the shape of the source.
        source: what is sent.

    Example:
        >>> places, x = torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 2.0])
        >>> scattered("amax", False, 0, torch.zeros(3), places, x)
        tensor([3., 2., 0.])

    """
    if isinstance(input, Tensor) and isinstance(index, Tensor):
        if input.dim() == 0:
            one = (each.reshape(1) for each in (input, index, source))
            return scattered(reduction, include_self, 0, *one).reshape(())
        index, source = _whole(dim, input, index, source)
    if reduction in ("sum", "mean"):
        return _summed(reduction, include_self, dim, input, index, source)
    reduce, neutral = REDUCTIONS[reduction]
    places, stands = torch.movedim(index, dim, -1), torch.movedim(input, dim, -1)
    here = torch.arange(input.shape[dim]).unsqueeze(-1)
    sent = places.unsqueeze(-2) == here
    found = torch.where(sent, torch.movedim(source, dim, -1).unsqueeze(-2), neutral)
    if include_self:
        found = torch.cat([stands.unsqueeze(-1), found], -1)
    reduced = reduce(found)
    if not include_self:
        reduced = torch.where(sent.any(-1), reduced, stands)
    return torch.movedim(reduced, -1, dim)


def _whole(dim: int, input: Tensor, index: Tensor, source: Any) -> tuple[Tensor, Any]:
    """Return index and source of the sizes of the input, but along ``dim``; the rest sends nothing."""
    source = source[tuple(slice(size) for size in index.shape)]
    missing = [0 if k == dim % input.dim() else input.shape[k] - index.shape[k] for k in range(input.dim())]
    if not any(missing):
        return index, source
    sizes = [each for size in reversed(missing) for each in (0, size)]
    return F.pad(index, sizes, value=-1), F.pad(source, sizes)


def _summed(reduction: str, include_self: bool, dim: int, input: Any, index: Any, source: Any) -> Any:
    counted = index >= 0
    index, source = torch.clamp(index, min=0), source * counted
    start = input if include_self else torch.zeros_like(input)
    total = torch.scatter_add(start, dim, index, source)
    if include_self and reduction == "sum":
        return total
    count = torch.scatter_add(torch.zeros_like(input), dim, index, torch.ones_like(source) * counted)
    if reduction == "mean":
        total = total / (count + 1 if include_self else torch.clamp(count, min=1))
    return total if include_self else torch.where(count > 0, total, input)


def along_index(reduction: str, include_self: bool, dim: int, input: Any, index: Any, source: Any) -> Any:
    """Reduce the slices of ``source`` that an index of one dimension sends to one place.

    Example:
        >>> places, x = torch.tensor([0, 0]), torch.tensor([[1.0, 3.0], [2.0, 4.0]])
        >>> along_index("prod", False, 0, torch.zeros(1, 2), places, x)
        tensor([[ 2., 12.]])

    """
    places = torch.zeros_like(torch.movedim(source, dim, -1)).long() + index
    return scattered(reduction, include_self, dim, input, torch.movedim(places, -1, dim), source)


def segmented(
    reduction: str, initial: float | None, data: Any, bounds: Any, axis: int = 0, rank: int = 1
) -> Any:
    """Reduce segments of a dimension.

    Args:
        reduction: ``"sum"``, ``"mean"``, ``"max"``, ``"min"`` or ``"prod"``.
        initial: with what each segment begins, None for the reduction's own.
        data: (*batch, n, *).
        bounds: of the segments, (*batch, one more than there are of them).
        axis: how many dimensions the batch has.
        rank: how many the data have, if there is a batch.

    Example:
        >>> segmented("mean", None, torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 2, 3]))
        tensor([2., 2.])

    """
    name = ALIASES.get(reduction, "sum" if reduction == "mean" else reduction)
    reduce, neutral = REDUCTIONS[name]
    place = torch.arange(data.shape[axis])
    inside = (place >= bounds[..., :-1].unsqueeze(-1)) & (place < bounds[..., 1:].unsqueeze(-1))
    if axis:
        for _ in range(rank - axis - 1):
            inside = inside.unsqueeze(axis)
    moved = torch.movedim(data, axis, -1).unsqueeze(-2)
    found = torch.where(inside, moved, neutral)
    if initial is not None:
        found = torch.cat([found, torch.full_like(found[..., :1], initial)], -1)
    reduced = reduce(found)
    if reduction == "mean":
        # Without an element torch returns what it begins with, or nothing that is a number.
        reduced = reduced / (inside.sum(-1) if initial is None else torch.clamp(inside.sum(-1), min=1))
    return torch.movedim(reduced, -1, axis)
