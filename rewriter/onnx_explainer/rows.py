"""Rows of samples, of references, and of their pairs: where they are in a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewriter.engine.tape import Pairing


@dataclass(frozen=True)
class Rows:
    """How many rows there are of what.

    Args:
        pairing: samples and references.
        outputs: explained at a time, K.

    """

    pairing: Pairing
    outputs: int

    @property
    def lead(self) -> tuple[Any, Any, Any]:
        """K, N, M: the order in which the rows of the third run lie."""
        return self.outputs, self.pairing.references, self.pairing.samples

    def repeated(self, x: Tensor) -> Tensor:
        """Return rows of samples, (M, *), as those of all pairs and outputs, (K x N x M, *)."""
        return x.expand(*self.lead[:2], *x.shape).flatten(0, 2)

    def split(self, d: Tensor, shape: Sequence[Any], outer: int) -> Tensor:
        """Take multipliers of what pairs left to (K, N, *shape).

        Args:
            d: with the batch of all pairs where the samples have theirs.
            shape: of what samples left.
            outer: size of what is merged with the batch outside of it.

        """
        place = batch_of(shape, d.shape)
        if place is None:
            return d[None, None]
        inner = shape[place] // self.pairing.samples // outer
        d = torch.unflatten(d, place, (outer, *self.lead, inner)).movedim((place + 1, place + 2), (0, 1))
        return d.flatten(place + 2, place + 4)

    def join(self, d: Tensor, shape: Sequence[Any], outer: int) -> Tensor:
        """Take multipliers (K, N, *of samples) to the shape of what pairs have there."""
        place = batch_of(d.shape[2:], shape)
        if place is None:
            return d.sum((0, 1))
        inner = d.shape[place + 2] // self.pairing.samples // outer
        d = torch.unflatten(d, place + 2, (outer, self.pairing.samples, inner))
        return d.movedim((0, 1), (place + 1, place + 2)).flatten(place, place + 4)


def batch_of(samples: Sequence[Any], pairs: Sequence[Any]) -> int | None:
    """Return the dimension in which shapes of samples and of pairs differ, None if there is none."""
    return next((k for k, (a, b) in enumerate(zip(samples, pairs, strict=True)) if a != b), None)
