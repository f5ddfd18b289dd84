"""Shapley values by permutations, from outputs alone: a contestant, and with many of them the truth."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

# Rows of one call of the model.
ROWS = 1 << 13


def permuted(
    net: nn.Module, x: Tensor, references: Tensor, groups: Tensor, pairs: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return Shapley values of players, the mean over orders and their reverses, and standard errors.

    Each pair of an order and its reverse has one of the references, all of them equally often (Castro,
    Gómez and Tejada 2009; Mitchell, Cooper, Frank and Holmes 2022).

    Args:
        net: takes (B, *shape), returns (B, 1).
        x: the sample (*shape).
        references: (N, *shape).
        groups: the player of each element, (*shape).
        pairs: how many.
        generator: of the orders.

    Returns:
        Values (players,), and their standard errors.

    """
    players = int(groups.max()) + 1
    orders = torch.rand(pairs, players, generator=generator).argsort(1)
    ranks = orders.argsort(1)
    drawn = references[torch.arange(pairs) % len(references)]
    found = []
    for each, rank in ((orders, ranks), (orders.flip(1), players - 1 - ranks)):
        # After j switches those of rank below j are as in the sample.
        switched = rank[:, None] < torch.arange(players + 1)[:, None]
        outputs = []
        for begin in range(0, pairs, max(1, ROWS // (players + 1))):
            part = slice(begin, begin + max(1, ROWS // (players + 1)))
            mixed = torch.where(switched[part][..., groups], x, drawn[part, None])
            with torch.no_grad():
                outputs.append(net(mixed.flatten(0, 1)).view(-1, players + 1))
        gains = torch.cat(outputs).double().diff(dim=1)
        found.append(torch.zeros_like(gains).scatter_(1, each, gains))
    both = torch.stack(found).mean(0)
    return both.mean(0), both.std(0) / pairs**0.5
