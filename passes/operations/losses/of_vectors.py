"""Losses of distances and angles between vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from passes.operations.contract import Plain, Textbook, Varies, is_plain
from passes.operations.losses.reduction import reduced


def margin_ranking(input1: Any, input2: Any, target: Any, margin: float = 0.0) -> Any:
    """Return the loss of ``F.margin_ranking_loss``."""
    return F.relu(margin - target * (input1 - input2))


def cosine_embedding(input1: Any, input2: Any, target: Any, margin: float = 0.0) -> Any:
    """Return the loss of ``F.cosine_embedding_loss``."""
    # As torch writes the cosine here.
    lengths = (torch.square(input1).sum(-1) + 1e-12) * (torch.square(input2).sum(-1) + 1e-12)
    cosine = (input1 * input2).sum(-1) / torch.sqrt(lengths)
    near = torch.where(target == 1, 1 - cosine, 0.0)
    return near + torch.where(target == -1, F.relu(cosine - margin), 0.0)


def triplet_margin(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
) -> Any:
    """Return the loss of ``F.triplet_margin_loss``."""
    distance = partial(F.pairwise_distance, p=p, eps=eps)
    return _triplet(distance, margin, swap, anchor, positive, negative)


def _triplet(
    distance: Callable[[Any, Any], Any], margin: float, swap: bool, anchor: Any, positive: Any, negative: Any
) -> Any:
    far = distance(anchor, negative)
    if swap:
        far = torch.minimum(far, distance(positive, negative))
    return F.relu(margin + distance(anchor, positive) - far)


def lower_triplet_with_distance(
    varies: Varies,
    anchor: Any,
    positive: Any,
    negative: Any,
    distance_function: Any = None,
    margin: Any = 1.0,
    swap: Any = False,
    reduction: Any = "mean",
) -> Textbook | None:
    """Lower ``F.triplet_margin_with_distance_loss``; the calls of the user's distance are lowered in turn."""
    if not all(map(is_plain, (margin, swap, reduction))):
        return None
    distance = F.pairwise_distance if distance_function is None else distance_function

    def of_three(*operands: Any) -> Any:
        return reduced(_triplet(distance, margin, swap, *operands), reduction)

    return Plain(of_three), (anchor, positive, negative)
