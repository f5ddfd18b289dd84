"""Layers are rewritten wherever the user keeps them."""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.stand_in import StandIn
from rewriter import decompose
from tests.support.compare import assert_close, assert_same_model
from tests.support.models.soundness import Base
from tests.support.watching import NoFusedKernels


class Cache:
    h: Tensor | None = None

    def put(self, h: Tensor) -> None:
        self.h = h


class Caches(Base):
    def __init__(self) -> None:
        super().__init__()
        self.cache, self.recent = Cache(), collections.deque([torch.zeros(1)], maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        out, h = self.g(x)
        self.cache.put(h)
        self.recent.append(h)
        return out


@pytest.mark.parametrize("flat", [False, True])
def test_helper_objects_of_the_original_are_not_touched(flat: bool) -> None:
    model = Caches()
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model, x if flat else None)
    assert model.cache.h is None
    assert len(model.recent) == 1
    rewritten(x)
    assert rewritten.report.islands


def test_example_inputs_are_not_changed() -> None:
    class Doubles(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.g(x.mul_(2))[0]

    x = torch.ones(2, 4, 3)
    decompose(Doubles(), x)
    assert torch.equal(x, torch.ones(2, 4, 3))


class Holder:
    layers: Any
    inner: Any


class Slots:
    __slots__ = ("layer",)
    layer: nn.Module


Pair = collections.namedtuple("Pair", ["layer", "other"])


def odd_places() -> dict[str, Callable[[nn.Module], tuple[Any, Callable[[Any], Any]]]]:
    def helper(g: nn.Module) -> Any:
        holder = Holder()
        holder.inner = Holder()
        holder.inner.layers = [g]
        return holder

    def slots(g: nn.Module) -> Any:
        slot = Slots()
        slot.layer = g
        return slot

    return {
        "nested helper": lambda g: (helper(g), lambda p: p.inner.layers[0]),
        "closure": lambda g: ((lambda: g), lambda p: p()),
        "named tuple": lambda g: (Pair(g, 1), lambda p: p.layer),
        "deque": lambda g: (collections.deque([g]), lambda p: p[0]),
        "default dict": lambda g: (collections.defaultdict(list, a=[g]), lambda p: p["a"][0]),
        "weak reference": lambda g: (weakref.ref(g), lambda p: p()),
        "slots": lambda g: (slots(g), lambda p: p.layer),
        "partial": lambda g: (functools.partial(lambda layer: layer, g), lambda p: p()),
    }


class Odd(Base):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.kept, self.get = odd_places()[place](self.g)

    def forward(self, x: Tensor) -> Tensor:
        return self.get(self.kept)(x)[0]


@pytest.mark.parametrize("place", odd_places())
def test_layers_in_odd_places_are_rewritten(place: str) -> None:
    model = Odd(place)
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model)
    with NoFusedKernels():
        got = rewritten(x)
    assert_close(got, model(x), 1e-6, place)
    assert not isinstance(model.get(model.kept), StandIn)


class BoundMethod(Base):
    def __init__(self) -> None:
        super().__init__()
        self.encode = self.g.forward
        self.partial = functools.partial(self.g.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[0] + self.partial(x)[0]


def test_bound_method_of_a_layer() -> None:
    model = BoundMethod()
    assert_same_model(model, decompose(model), torch.randn(2, 4, 3))
