"""Containers are walked as torch walks them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.user_code.clone import clone_structure
from passes.user_code.structure import map_tensors, tensors_in


class Named(NamedTuple):
    a: Any
    b: Any


A, B, C = torch.ones(1), torch.ones(2), nn.Parameter(torch.ones(3))
VALUES = [
    A,
    None,
    1.5,
    "word",
    (A, [B, {"k": C, "j": (A, 2)}], None),
    {2: A, 1: B},
    OrderedDict([("z", A), ("y", [B])]),
    Named(A, (B, 3)),
    (slice(A, B), torch.float32),
    torch.Size([1, 2]),
    torch.stack([A, A]).max(0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_as_torch_walks_it(value: object) -> None:
    expected = [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)]
    assert [id(each) for each in tensors_in(value)] == [id(each) for each in expected]
    mapped = map_tensors(lambda each: each + 1, value)
    like = pytree.tree_map_only(Tensor, lambda each: each + 1, value)
    assert type(mapped) is type(like)
    assert pytree.tree_structure(mapped) == pytree.tree_structure(like)
    for a, b in zip(pytree.tree_leaves(mapped), pytree.tree_leaves(like), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_what_torch_does_not_open_is_opened_below_plain_containers() -> None:
    @dataclass
    class Batch:
        x: Tensor

    assert [id(each) for each in tensors_in([(Batch(A), {B})])] == [id(A), id(B)]


def test_empty_containers_are_cloned_and_stay_one() -> None:
    model: Any = nn.Tanh()
    model.log = model.same = []
    model.table, model.order, model.chosen = {}, OrderedDict(), set()
    clone = clone_structure(model)
    assert clone.log is clone.same
    for name in ("log", "table", "order", "chosen", "_forward_hooks", "_modules"):
        ours, theirs = getattr(clone, name), getattr(model, name)
        assert ours is not theirs
        assert type(ours) is type(theirs)
        assert ours == theirs
