"""Whatever a model's code writes to while we run it, the user's objects stay as they are."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.user_code.clone import private_clone
from rewriter import DeepExplainer, check_equivalence, decompose, diagnose


class Box:
    """A plain object of the user's."""

    def __init__(self) -> None:
        self.n = torch.zeros(1)
        self.items: list[Any] = []
        self.lock = threading.Lock()


def counting(tensor: Tensor) -> Callable[[], None]:
    def count() -> None:
        tensor.add_(1)

    return count


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(1))
        self.items: list[Any] = []
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(3))])


class Writing(nn.Module):
    """Writes to something in each call."""

    def __init__(self, write: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.g = nn.GRU(3, 3, batch_first=True)
        self.stats: dict[str, Any] = {"n": torch.zeros(1), "deep": [{"n": torch.zeros(1)}]}
        self.box = Box()
        self.holder = Holder()
        self.kept = torch.zeros(2)
        self.first = self.kept[:1]
        self.numbers, self.pairs = np.random.default_rng(0), random.Random(0)
        self.count = counting(self.kept)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.g(x)[0][:, -1]
        self.write(self, y.detach())
        return y


WRITES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a tensor in a dictionary": lambda m, y: m.stats["n"].add_(1),
    "a tensor deep in containers": lambda m, y: m.stats["deep"][0]["n"].add_(1),
    "a dictionary": lambda m, y: m.stats.update(last=y),
    "a tensor of an object": lambda m, y: m.box.n.add_(1),
    "a list of an object with a lock": lambda m, y: m.box.items.append(y),
    "a buffer of a child that is not called": lambda m, y: m.holder.n.add_(1),
    "a list of a child that is not called": lambda m, y: m.holder.items.append(y),
    "a parameter list that grows": lambda m, y: m.holder.parts.append(nn.Parameter(torch.ones(3))),
    "a tensor in a closure": lambda m, y: m.count(),
    "a tensor's data": lambda m, y: m.kept.data.add_(1),
    "a view": lambda m, y: m.first.add_(1),
    "a parameter": lambda m, y: m.g.bias_hh_l0.data.add_(0.1),
    "a generator of numpy": lambda m, y: m.numbers.normal(),
    "a generator of Python": lambda m, y: m.pairs.random(),
    "an attribute": lambda m, y: setattr(m, "last", y),
}


def seen(value: Any, known: set[int]) -> Iterator[Any]:
    """Yield all numbers that a value leads to."""
    if id(value) in known:
        return
    known.add(id(value))
    if isinstance(value, Tensor):
        yield value.tolist()
    elif isinstance(value, np.random.Generator):
        yield value.bit_generator.state
    elif isinstance(value, random.Random):
        yield value.getstate()
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from seen(each, known)
    elif isinstance(value, list | tuple):
        yield len(value)
        for each in value:
            yield from seen(each, known)
    elif isinstance(value, nn.Module | Box):
        yield from seen(vars(value), known)
    elif getattr(value, "__closure__", None):
        yield from seen([cell.cell_contents for cell in value.__closure__], known)


@pytest.mark.parametrize("name", WRITES)
def test_nothing_of_the_users_is_written_to(name: str) -> None:
    model, x, background = Writing(WRITES[name]).eval(), torch.randn(2, 4, 3), torch.randn(5, 4, 3)
    before = list(seen(model, set()))
    rewritten = decompose(model)
    decompose(model, x)
    explainer = DeepExplainer(model, background)
    first, second = (explainer.shap_values(x, check_additivity=False) for _ in range(2))
    assert np.array_equal(first, second)
    check_equivalence(model, rewritten, x)
    diagnose(rewritten, x, background)
    assert list(seen(model, set())) == before


def test_copies_of_tensors_share_memory_as_the_originals_do() -> None:
    model = Writing(lambda m, y: None)
    clone = private_clone(model)
    clone.kept.add_(1)
    assert clone.first.tolist() == [1.0]
    assert model.kept.tolist() == [0.0, 0.0]
    clone.count()
    assert clone.kept.tolist() == [2.0, 2.0]


def test_a_closure_that_calls_itself_is_copied() -> None:
    def outer() -> Callable[[int], int]:
        log: list[int] = []

        def again(n: int) -> int:
            log.append(n)
            return n if n == 0 else again(n - 1)

        return again

    model: Any = nn.Identity()
    model.again = outer()
    clone = private_clone(model)
    assert clone.again(3) == 0
    assert model.again.__closure__[1].cell_contents == []
