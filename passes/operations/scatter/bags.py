"""Bags of embeddings: sums, means and maxima of what is looked up, by rows or by offsets."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from passes.operations.contract import Plain, Textbook, Varies, is_plain
from passes.operations.scatter.grouped import segmented


def lower_embedding_bag(
    varies: Varies,
    input: Any,
    weight: Any,
    offsets: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: Any = False,
    mode: Any = "mean",
    sparse: Any = False,
    per_sample_weights: Any = None,
    include_last_offset: Any = False,
    padding_idx: Any = None,
) -> Textbook | None:
    """Lower ``F.embedding_bag``, unless it changes its weight."""
    if not all(map(is_plain, (mode, include_last_offset, padding_idx))) or mode not in ("sum", "mean", "max"):
        return None
    given = (offsets is not None, per_sample_weights is not None)
    operands = [each for each in (offsets, per_sample_weights) if each is not None]
    function = partial(_bags, mode, padding_idx, include_last_offset, given)
    return Plain(function), (input, weight, *operands)


def _bags(
    mode: str,
    padding: int | None,
    last: bool,
    given: tuple[bool, bool],
    places: Any,
    weight: Any,
    *operands: Any,
) -> Any:
    found = F.embedding(places, weight)
    if given[1]:
        found = found * operands[-1].unsqueeze(-1)
    if padding is not None:
        # Counted from the end, perhaps.
        padding = padding if padding >= 0 else weight.shape[0] + padding
    counts = torch.ones_like(places) if padding is None else (places != padding).to(torch.int64)
    counts = counts.unsqueeze(-1)
    bounds = None
    if given[0]:
        end = torch.full_like(operands[0][:1], places.shape[0])
        bounds = operands[0] if last else torch.cat([operands[0], end])
    if mode == "max":
        largest = _reduced("max", torch.where(counts > 0, found, -math.inf), bounds)
        # Of nothing it is zero.
        return torch.where(_reduced("sum", counts, bounds) > 0, largest, 0.0)
    total = _reduced("sum", found * counts, bounds)
    return total if mode == "sum" else total / torch.clamp(_reduced("sum", counts, bounds), min=1)


def _reduced(reduction: str, found: Any, bounds: Any) -> Any:
    if bounds is not None:
        return segmented(reduction, None, found, bounds)
    return torch.amax(found, 1) if reduction == "max" else found.sum(1)
