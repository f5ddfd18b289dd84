"""Multipliers of what runs along a dimension: each result is one of all elements up to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def running_multipliers(
    multipliers: Callable[[Tensor, Tensor], Tensor], x: Tensor, x0: Tensor, d: Tensor, dim: int
) -> Tensor:
    """Take multipliers of running results to what they run over, (K, n, *shape).

    Args:
        multipliers: takes rows of elements of samples and references, (*, L), those that do not count yet
            minus infinity, and returns the multipliers of the last dimension, (*, L).
        x: the operand of the samples, (n or 1, *shape).
        x0: of the references, likewise.
        d: (K, n, *shape).
        dim: the dimension, from the end.

    Example:
        >>> def largest(x, x0):
        ...     return (x == x.amax(-1, keepdim=True)).float()
        >>> x, x0, d = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2), torch.ones(1, 1, 2)
        >>> running_multipliers(largest, x, x0, d, -1)
        tensor([[[1., 1.]]])

    """
    length = x.shape[dim]
    behind = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    upto, upto0 = (each.movedim(dim, -1).unsqueeze(-2).masked_fill(behind, -torch.inf) for each in (x, x0))
    pulled = d.movedim(dim, -1).unsqueeze(-2) @ multipliers(upto, upto0).to(d.dtype)
    return pulled.squeeze(-2).movedim(-1, dim)
