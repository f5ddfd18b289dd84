"""Exact Shapley values by brute force: every subset of the inputs, no sampling.

The value of a set S of inputs is the interventional one, which DeepSHAP and KernelExplainer approximate
too: v(S) = the mean over the references r of f(x on S, r elsewhere). An input that equals all references
is a dummy player: its value is zero, and leaving it out changes no other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# 2^12 subsets.
MOST_PLAYERS = 12
# Rows of one call of the model.
ROWS = 1 << 14


def shapley_values(f: Callable[[Tensor], Tensor], x: Tensor, references: Tensor) -> Tensor:
    """Return the Shapley values of one sample: the mean marginal contribution over all orders.

    φ_i = Σ over S without i of |S|! (n - 1 - |S|)! / n! · (v(S + i) - v(S)), Shapley 1953.

    Args:
        f: takes (B, *shape), returns (B,) or (B, 1).
        x: the sample (*shape).
        references: (N, *shape).

    Raises:
        ValueError: if more than 12 inputs differ from a reference.

    """
    players = (x != references).any(0).flatten().nonzero().flatten()
    count = len(players)
    if count > MOST_PLAYERS:
        raise ValueError(f"x: expected at most {MOST_PLAYERS} inputs unlike the references, got {count}")
    subsets = torch.arange(1 << count)
    member = (subsets[:, None] >> torch.arange(count)) & 1 == 1
    chosen = torch.zeros(len(subsets), x.numel(), dtype=torch.bool)
    chosen[:, players] = member
    mixed = torch.where(chosen[:, None], x.flatten(), references.flatten(1))
    with torch.no_grad():
        outputs = torch.cat([f(part).reshape(-1) for part in mixed.reshape(-1, *x.shape).split(ROWS)])
    worth = outputs.reshape(len(subsets), len(references)).mean(1)
    size = member.sum(1).tolist()
    weight = [math.factorial(s) * math.factorial(count - 1 - s) / math.factorial(count) for s in range(count)]
    values = torch.zeros_like(x).flatten()
    for k, player in enumerate(players.tolist()):
        without = subsets[~member[:, k]]
        scale = torch.tensor([weight[size[s]] for s in without.tolist()], dtype=x.dtype)
        values[player] = (scale * (worth[without | (1 << k)] - worth[without])).sum()
    return values.reshape(x.shape)
