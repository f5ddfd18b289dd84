"""Cosine similarity and distance of two vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import Mul
from passes.operations.contract import Build, Lowering, Textbook, Varies
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


def _cosine(varies: Varies, x1: Any, x2: Any, dim: Any = 1, eps: Any = 1e-8) -> Textbook | None:
    if type(dim) is not int or not isinstance(eps, int | float):
        return None
    return CosineSimilarityAtoms(dim, eps), (x1, x2)


def _distance(
    varies: Varies, x1: Any, x2: Any, p: Any = 2.0, eps: Any = 1e-6, keepdim: Any = False
) -> Textbook | None:
    if p not in (1, 2) or not isinstance(eps, int | float) or not isinstance(keepdim, bool):
        return None
    return PairwiseDistanceAtoms(int(p), eps, keepdim), (x1, x2)


CALLS: Mapping[Any, Lowering] = {
    torch.cosine_similarity: _cosine,
    torch.pairwise_distance: _distance,
}

MODULES: Mapping[type[nn.Module], Build] = {
    nn.CosineSimilarity: lambda module: CosineSimilarityAtoms(module.dim, module.eps),
    nn.PairwiseDistance: lambda module: (
        PairwiseDistanceAtoms(int(module.norm), module.eps, module.keepdim) if module.norm in (1, 2) else None
    ),
}
