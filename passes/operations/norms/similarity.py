"""Cosine similarity and distance of two vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import Mul
from passes.operations.norms.vector_norms import Normalize, VectorNorm


class CosineSimilarityAtoms(nn.Module):
    """Inner product of two vectors that are scaled to length 1.

    Args:
        dim: of the vectors.
        eps: the smallest length to divide by.

    Example:
        >>> CosineSimilarityAtoms(-1, 1e-8)(torch.ones(1, 3), -torch.ones(1, 3)).round()
        tensor([-1.])

    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.first = Normalize(2, (dim,), eps)
        self.second = Normalize(2, (dim,), eps)
        self.product = Mul()

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the similarity of what broadcasts to one shape."""
        both = torch.broadcast_tensors(x1, x2)  # type: ignore[no-untyped-call]
        similarity: Tensor = self.product(self.first(both[0]), self.second(both[1])).sum(self.dim)
        return similarity


class PairwiseDistanceAtoms(nn.Module):
    """Norm of the difference of two vectors, in the last dimension.

    Args:
        order: 1 or 2.
        eps: added to each difference.
        keepdim: keep the last dimension with size 1.

    Example:
        >>> PairwiseDistanceAtoms(2, 0.0, False)(torch.ones(1, 4), torch.zeros(1, 4))
        tensor([2.])

    """

    def __init__(self, order: int, eps: float, keepdim: bool) -> None:
        super().__init__()
        self.norm = order
        self.eps = eps
        self.keepdim = keepdim
        self.length = VectorNorm(order, (-1,), keepdim)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the distance of what broadcasts to one shape."""
        distance: Tensor = self.length(x1 - x2 + self.eps)
        return distance


def distance_of_order(order: float, eps: float, keepdim: bool, a: Any, b: Any) -> Any:
    """Return ``F.pairwise_distance`` of any order.

    Example:
        >>> distance_of_order(float("inf"), 0.0, False, torch.ones(2), torch.zeros(2))
        tensor(1.)

    """
    return torch.linalg.vector_norm(a - b + eps, order, (-1,), keepdim)
