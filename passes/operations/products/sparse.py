"""Products with a sparse matrix that is known, reduced over what it holds."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from passes.operations.contract import Plain, Textbook, Varies


def lower_sparse_mm(varies: Varies, sparse: Any, dense: Any, reduce: Any = None) -> Textbook | None:
    """Lower ``torch.sparse.mm`` by its numbers and places, where code runs."""
    if not isinstance(sparse, Tensor) or sparse.layout == torch.strided or varies(sparse):
        return None
    if reduce not in (None, "sum", "mean", "amax", "amin"):
        return None
    # Also a zero may be one of what it holds.
    held = sparse.detach().to_sparse(layout=torch.sparse_coo).coalesce()
    numbers = held.to_dense()
    places = torch.zeros_like(numbers)
    places[tuple(held.indices())] = 1
    return Plain(partial(_product, reduce, numbers, places)), (dense,)


def _product(reduce: str | None, numbers: Tensor, places: Tensor, x: Any) -> Any:
    if reduce in (None, "sum", "mean"):
        total = torch.mm(numbers, x)
        return total / torch.clamp(places.sum(1, keepdim=True), min=1) if reduce == "mean" else total
    held = places.unsqueeze(-1) > 0
    sign = 1.0 if reduce == "amax" else -1.0
    terms = torch.where(held, sign * numbers.unsqueeze(-1) * x.unsqueeze(-3), -math.inf)
    # Of nothing it is zero.
    return torch.where(held.any(1), sign * torch.amax(terms, 1), 0.0)
