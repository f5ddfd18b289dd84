"""A clone has modules of its own and tensors in common."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn

from passes.user_code.clone import clone_structure, named_clones


def test_modules_are_fresh_and_tensors_shared() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.GRU(2, 2)))
    clone = clone_structure(model)
    assert not {id(m) for m in model.modules()} & {id(m) for m in clone.modules()}
    for source in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(clone, source)()), dict(getattr(model, source)())
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in ours)
    clone.eval()
    clone[0].register_forward_hook(lambda *_: None)
    assert model.training
    assert not model[0]._forward_hooks


def test_sharing_and_cycles_are_kept() -> None:
    inner = nn.Linear(2, 2)
    model: Any = nn.ModuleDict({"a": inner, "b": inner})
    model.parent = [model]
    clone = clone_structure(model)
    assert clone["a"] is clone["b"]
    assert clone.parent[0] is clone


def test_references_of_every_kind_lead_into_the_clone() -> None:
    model: Any = nn.Module()
    model.layer = nn.Linear(2, 2)
    model.plain = [model.layer]
    model.table = OrderedDict(first=(model.layer,))
    model.method = model.layer.forward
    model.partial = functools.partial(model.layer.forward, torch.ones(1, 2))
    clone = clone_structure(model)
    assert clone.plain[0] is clone.layer
    assert clone.table["first"][0] is clone.layer
    assert clone.method.__self__ is clone.layer
    assert clone.partial.func.__self__ is clone.layer
    assert torch.equal(clone.partial(), model.partial())


def test_containers_are_not_shared() -> None:
    model: Any = nn.Module()
    model.log = [[1]]
    clone = clone_structure(model)
    clone.log[0].append(2)
    assert model.log == [[1]]


def test_graph_modules_get_a_graph_of_their_own() -> None:
    model = nn.Sequential(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    clone = clone_structure(model)
    assert clone[0].graph is not model[0].graph
    assert clone[0].graph.owning_module is clone[0]
    assert model[0].graph.owning_module is model[0]
    x = torch.randn(3, 2)
    assert torch.equal(clone(x), model(x))


def test_compiled_forward_is_not_taken_along() -> None:
    model = nn.Linear(2, 2)
    model._compiled_call_impl = lambda *_: 1 / 0
    assert clone_structure(model)(torch.ones(1, 2)).shape == (1, 2)


def test_names() -> None:
    model: Any = nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1))})
    model.spare = {"x": [nn.Linear(1, 1)]}
    _, modules = named_clones(model)
    assert list(modules) == ["", "a", "a.0", "spare.x[0]"]


class Told(list[Any]):
    """A list that tells its owner what is put in, and takes nothing once that is locked, as Keras' does."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.owner = owner

    def extend(self, items: Any) -> None:
        for each in items:
            self.append(each)

    def append(self, item: Any) -> None:
        assert not self.owner.locked
        self.owner.log.append(item)
        super().append(item)


def test_containers_that_tell_what_is_put_in_are_told_nothing() -> None:
    model: Any = nn.Module()
    model.log, model.locked = [], False
    model.parts = Told(model)
    model.parts.append(nn.Linear(2, 2))
    model.locked = True
    clone: Any = clone_structure(model)
    assert len(model.log) == 1
    assert type(clone.parts) is Told
    assert clone.parts[0] is not model.parts[0]
    assert clone.parts.owner is clone
    assert clone.log[0] is clone.parts[0]
