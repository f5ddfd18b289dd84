"""Chains of thousands of objects, and long lists of numbers, that models hold or take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.user_code.clone import clone_structure, private_clone
from rewriter import DeepExplainer, decompose

X = torch.randn(2, 4, 3)


class Link:
    def __init__(self, following: Any) -> None:
        self.following = following


KINDS: dict[str, Callable[[Any], Any]] = {
    "tuples": lambda value: (value,),
    "lists": lambda value: [value],
    "dictionaries": lambda value: {"a": value},
    "objects": Link,
}


def chain(kind: str, end: Any, length: int = 2000) -> Any:
    value = end
    for _ in range(length):
        value = KINDS[kind](value)
    return value


def end_of(value: Any) -> Any:
    while isinstance(value, tuple | list | dict | Link):
        value = value.following if isinstance(value, Link) else value["a" if isinstance(value, dict) else 0]
    return value


class Holds(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.g = nn.GRU(3, 3, batch_first=True)
        self.held = held

    def forward(self, x: Tensor, given: Any = None) -> Tensor:
        y: Tensor = self.g(x)[0][:, -1]
        return y


@pytest.mark.parametrize("kind", KINDS)
def test_what_hangs_deep_is_copied(kind: str) -> None:
    tensor = torch.zeros(1)
    model = Holds(chain(kind, tensor)).eval()
    assert end_of(clone_structure(model).held) is tensor
    own = end_of(private_clone(model).held)
    assert own is not tensor
    assert torch.equal(own, tensor)
    owner = Holds(None)
    owner.held = chain(kind, owner.g)
    clone = clone_structure(owner)
    assert end_of(clone.held) is clone.g


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_hold_or_take_a_chain_are_rewritten(kind: str) -> None:
    deep = chain(kind, 1.0)
    model = Holds(deep).eval()
    for rewritten, args in ((decompose(model), (X,)), (decompose(model, (X, deep)), (X, deep))):
        torch.testing.assert_close(rewritten(*args), model(*args), rtol=0, atol=1e-6)
        assert rewritten.report.proven
    values = torch.as_tensor(DeepExplainer(model, 0 * X).shap_values(X)).float()
    with torch.no_grad():
        expected = model(X) - model(0 * X)
    torch.testing.assert_close(values.sum((1, 2)), expected, rtol=0, atol=1e-5)


def test_many_numbers_and_many_objects_take_no_time() -> None:
    held = [tuple(map(float, range(300_000))), chain("objects", None, 3000)]
    began = time.process_time()
    decompose(Holds(held).eval())(X)
    # 0.2 seconds; to walk on from each object took more than 10.
    assert time.process_time() - began < 4


class Ring:
    def __init__(self) -> None:
        self.itself = self


def test_what_refers_to_itself_has_an_end() -> None:
    ring = Ring()
    model = Holds(ring).eval()
    clone = private_clone(model)
    assert clone.held.itself is clone.held is not ring
    rewritten = decompose(model)
    torch.testing.assert_close(rewritten(X, ring), model(X), rtol=0, atol=1e-6)
