"""Where a path from a reference to a sample goes: blocks of inputs in a random order, each in segments.

Attributions of a *switch*, from one point of the path to the next, are DeepLIFT's; those of the path are
their sum. All inputs at once are DeepSHAP; one input at a time, in random orders, is how Shapley values are
estimated (Castro, Gómez and Tejada 2009, with the reversed order of Mitchell and others 2022); one block in
ever more segments converges to integrated gradients (Sundararajan, Taly and Yan 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewriter.engine.problem import Inputs


@dataclass(frozen=True)
class Path:
    """What lies between a reference and a sample.

    Args:
        blocks: into how many parts the players are dealt, each switched from reference to sample in its turn.
        segments: in how many equal pieces each is.
        draws: how many orders, each with its reverse.
        seed: of the orders. Each draw and each reference has its own; all samples have the same.
        players: for each input, (*shape of a row), which player each element belongs to, from 0 on.

    Example:
        >>> path = Path(blocks=2, players=(torch.arange(4),))
        >>> path.switches, path.directions, path.orders(0, range(3)).shape
        (2, 2, torch.Size([3, 4]))
        >>> weights, = path.weights([1], path.orders(0, range(1)))
        >>> weights.shape, weights[0, 0, 0] + weights[0, 1, 0]
        (torch.Size([1, 2, 1, 4]), tensor([1., 1., 1., 1.], dtype=torch.float64))

    """

    blocks: int = 1
    segments: int = 1
    draws: int = 1
    seed: int = 0
    players: tuple[Tensor, ...] = ()

    @property
    def switches(self) -> int:
        """The number of switches; 1 if there is nothing between a reference and a sample."""
        return self.blocks * self.segments

    @property
    def directions(self) -> int:
        """An order and its reverse, which are the same for a single block."""
        return 1 if self.blocks == 1 else 2

    @property
    def count(self) -> int:
        """The number of players."""
        return 1 + max((int(each.max()) for each in self.players if each.numel()), default=-1)

    def orders(self, draw: int, references: Sequence[int]) -> Tensor:
        """Return the block of each player for some references, (n, players)."""
        if self.blocks == 1:
            return torch.zeros(len(references), self.count, dtype=torch.long)
        places = [torch.randperm(self.count, generator=self._generator(draw, n)) for n in references]
        return torch.stack(places) * self.blocks // self.count

    def _generator(self, draw: int, reference: int) -> torch.Generator:
        # Numbers that follow each other make generators that are alike.
        (mixed,) = np.random.SeedSequence((self.seed, draw, reference)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))

    def weights(self, places: Sequence[int], orders: Tensor) -> Inputs:
        """Return how far from reference to sample each element is, (places, directions, n, *shape) per input.

        Args:
            places: numbers of points of the path, 0 of the reference and :attr:`switches` of the sample.
            orders: the block of each player, (n, players).

        """
        both = torch.stack([orders, self.blocks - 1 - orders][: self.directions])
        passed = torch.tensor(places, dtype=torch.float64).view(-1, 1, 1, 1) / self.segments
        weights = (passed - both).clamp(0, 1)
        return [weights[..., each] for each in self.players]


def between(sample: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Return what is a part of the way from a reference to a sample; its ends are those to the last bit.

    Example:
        >>> between(torch.ones(3), torch.full((3,), 3.0), torch.tensor([0.0, 0.5, 1.0]))
        tensor([3., 2., 1.])

    """
    if sample.is_floating_point():
        inside = reference + weight.to(sample.dtype) * (sample - reference)
    else:
        inside = reference
    return torch.where(weight >= 1, sample, torch.where(weight > 0, inside, reference))
