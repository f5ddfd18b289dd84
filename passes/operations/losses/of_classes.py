"""Losses of scores of classes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from passes.operations.losses.of_elements import binary_cross_entropy_with_logits, weighted


def multi_margin(input: Any, target: Any, weight: Any = None, p: int = 1, margin: float = 1.0) -> Any:
    """Return the loss of ``F.multi_margin_loss``; the term of the right class is a number."""
    scores = torch.atleast_1d(input)  # type: ignore[no-untyped-call]
    right = torch.gather(scores, -1, _like_rows(target, scores).unsqueeze(-1))
    terms = F.relu(margin - right + scores)
    if p == 2:
        terms = torch.square(terms)
    losses = (terms.sum(-1) - max(margin, 0.0) ** p) / scores.shape[-1]
    return losses if weight is None else losses * weight[_like_rows(target, scores)]


def multilabel_margin(input: Any, target: Any) -> Any:
    """Return the loss of ``F.multilabel_margin_loss``: classes named up to -1, against all others."""
    scores, target = torch.atleast_1d(input), torch.atleast_1d(target)  # type: ignore[no-untyped-call]
    named = torch.cumprod((target >= 0).to(torch.int64), -1)
    place = torch.clamp(target, min=0)
    right = torch.scatter_add(torch.zeros_like(target), -1, place, named) > 0
    apart = 1 - torch.gather(scores, -1, place).unsqueeze(-1) + scores.unsqueeze(-2)
    counted = named.unsqueeze(-1) * torch.logical_not(right).unsqueeze(-2)
    return (F.relu(apart) * counted).sum((-2, -1)) / scores.shape[-1]


def multilabel_soft_margin(input: Any, target: Any, weight: Any = None) -> Any:
    """Return the loss of ``F.multilabel_soft_margin_loss``, the mean over classes."""
    return weighted(binary_cross_entropy_with_logits(input, target), weight).mean(-1)


def _like_rows(target: Any, input: Any) -> Any:
    """Return targets of the shape of the rows: a single row's may be in a dimension of its own."""
    return target.reshape(input.shape[:-1])
