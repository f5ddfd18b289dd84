"""Layers that overwrite what they take, whose result the model reads by another name for the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support.models.layers import InPlace


class Way(NamedTuple):
    """One way to take a part of a hidden value (B, 4).

    Args:
        take: returns a view.
        put: returns the value, out of place, with another part.

    """

    take: Callable[[Tensor], Tensor]
    put: Callable[[Tensor, Tensor], Tensor]


def _columns(y: Tensor, part: Tensor) -> Tensor:
    return torch.cat([y[:, :1], part, y[:, 3:]], 1)


WAYS: dict[str, Way] = {
    "another name": Way(lambda y: y, lambda y, part: part),
    "columns": Way(lambda y: y[:, 1:3], _columns),
    "a column": Way(lambda y: y[:, 0], lambda y, part: torch.cat([part[:, None], y[:, 1:]], 1)),
    "another shape": Way(lambda y: y.view(-1, 2, 2), lambda y, part: part.flatten(1)),
    "a transpose": Way(lambda y: y.T, lambda y, part: part.T),
}
OVERWRITING: dict[str, Callable[[], nn.Module]] = {
    "LeakyReLU": lambda: nn.LeakyReLU(0.3, inplace=True),
    "the user's": InPlace,
}


class Overwritten(nn.Module):
    """What the layer returns is dropped.

    Args:
        layer: overwrites what it takes.
        way: what it takes.
        before: whether a view that was taken before is read afterwards, instead of the value itself.
        branches: whether torch.fx cannot follow the model.

    """

    def __init__(self, layer: nn.Module, way: Way, *, before: bool, branches: bool) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(3, 4), layer, nn.Linear(4, 2)
        self.way, self.before, self.branches = way, before, branches

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        seen = y.view(-1, 4, 1)
        self.layer(self.way.take(y))
        z = self.head((seen.flatten(1) if self.before else y).tanh())
        if self.branches and z.sum() > 1e9:
            return -z
        return z


class FromPart(nn.Module):
    """What is behind the layer, as a function of the part and of what goes around it.

    Args:
        model: what the layer is a part of.
        layer: applied to the part; None where the part is what it gave.

    """

    def __init__(self, model: Overwritten, layer: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.head, self.put = layer, model.head, model.way.put

    def forward(self, part: Tensor, y: Tensor) -> Tensor:
        part = part.clone()
        return self.head(self.put(y, part if self.layer is None else self.layer(part)).tanh())
