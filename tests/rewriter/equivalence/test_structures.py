"""Tensors are found wherever a model puts them, and what cannot be looked into is never called equal."""

from __future__ import annotations

import copy
from collections import abc, deque, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rewriter import check_equivalence
from tests.support.comparisons import Function, failing


class Named(NamedTuple):
    out: Tensor
    rest: Any


@dataclass
class Data:
    out: Tensor | PackedSequence
    rest: Any


Plain = namedtuple("Plain", ["out", "rest"])


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class Callable(Slots):
    def __call__(self) -> Any:
        return self.y


class Attribute(list[Any]):
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x)
        self.y = y


@pytest.mark.parametrize(
    ("structure", "place"),
    [
        (lambda x, y: y, "output"),
        (lambda x, y: (x, [y]), "output[1][0]"),
        (lambda x, y: {"a": x, 1: (y,)}, "output[1][0]"),
        (lambda x, y: {"a": {"b": y}}, "output['a']['b']"),
        (lambda x, y: Named(x, y), "output.rest"),
        (lambda x, y: Plain(x, {"y": y}), "output.rest['y']"),
        (lambda x, y: Data(x, (None, y)), "output.rest[1]"),
        (lambda x, y: SimpleNamespace(x=x, y=y), "output.y"),
        (lambda x, y: torch.distributions.Normal(x, y.exp()), "output.scale"),
        (lambda x, y: (x, y.sum().item()), "output[1]"),
        (lambda x, y: (x, y.detach().numpy()), "output[1]"),
        (lambda x, y: PackedSequence(y, torch.tensor([2])), "output.data"),
        (lambda x, y: torch.complex(x, y), "output"),
        (lambda x, y: (y > 0).long(), "output"),
        (lambda x, y: deque([x, y]), "output[1]"),
        (lambda x, y: {"a": x, "b": y}.values(), "output[1]"),
        (lambda x, y: Slots(x, y), "output.y"),
        (lambda x, y: Callable(x, y), "output.y"),
        (lambda x, y: Attribute([x], y), "output.y"),
    ],
)
def test_tensors_are_found_wherever_they_are(
    structure: abc.Callable[[Tensor, Tensor], Any], place: str
) -> None:
    right, wrong = Function(lambda x: structure(x, 0.5 - x)), Function(lambda x: structure(x, 0.7 - x))
    inputs = torch.tensor([0.6, 0.25])
    assert check_equivalence(right, right, inputs).equal
    assert ("output", place) in failing(check_equivalence(right, wrong, inputs))


@pytest.mark.parametrize(
    ("expected", "got", "problem"),
    [
        ("mean", "sum", "expected 'mean', got 'sum'"),
        (3, 4, "expected 3, got 4"),
        (True, 1, "expected True, got 1"),
        (None, 0, "expected None, got 0"),
        (range(3), range(4), "expected range(0, 3), got range(0, 4)"),
        (int, float, "expected type builtins.int, got type builtins.float"),
        ({"a": 1}, {"b": 1}, "expected dict with ['a'], got dict with ['b']"),
    ],
)
def test_other_parts_must_be_the_same(expected: Any, got: Any, problem: str) -> None:
    report = check_equivalence(
        Function(lambda x: (x, expected)), Function(lambda x: (x, got)), torch.ones(1), seeds=1
    )
    assert {(each.place, each.problem) for each in report.failures} == {("output[1]", problem)}


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (slice(0, 2), slice(0, 3)),
        (frozenset({"a"}), frozenset({"b"})),
        ({1, 2}, {1, 3}),
        ({1, 2}, {1, 2, 3}),
        (torch.Size([2, 3]), torch.Size([2, 4])),
    ],
)
def test_plain_containers_are_compared_by_value(expected: Any, got: Any) -> None:
    def model(value: Any) -> nn.Module:
        return Function(lambda x: (x, value))

    inputs = torch.ones(1)
    assert check_equivalence(model(expected), model(copy.deepcopy(expected)), inputs, seeds=1).equal
    assert not check_equivalence(model(expected), model(got), inputs, seeds=1).equal


@pytest.mark.parametrize(
    ("hide", "name"),
    [
        (lambda y: iter([y]), "list_iterator"),
        (lambda y: (each for each in [y]), "generator"),
        (lambda y: map(torch.neg, [y]), "map"),
        (lambda y: {y}, "set"),
        (lambda y: frozenset([y]), "frozenset"),
        (lambda y: {y.item()}, "set"),
        (lambda y: lambda: y, "function"),
        (lambda y: y.sum, "builtin_function_or_method"),
        (lambda y: partial(torch.add, y), "partial"),
        (lambda y: nn.ParameterList([y.detach()]), "ParameterList"),
        (lambda y: object(), "object"),
    ],
)
def test_what_cannot_be_looked_into_is_never_called_equal(
    hide: abc.Callable[[Tensor], Any], name: str
) -> None:
    def model(sign: float) -> nn.Module:
        return Function(lambda x: (x, hide(sign * x)))

    report = check_equivalence(model(1.0), model(-1.0), torch.ones(1), seeds=1)
    (problem,) = {each.problem for each in report.failures}
    assert problem.startswith(f"cannot look into {name} at output[1]")


def test_an_object_that_is_there_twice_is_compared_twice() -> None:
    def twice(x: Tensor) -> Any:
        data = SimpleNamespace(x=x)
        return data, data

    wrong = Function(lambda x: (SimpleNamespace(x=x), SimpleNamespace(x=-x)))
    assert ("output", "output[1].x") in failing(check_equivalence(Function(twice), wrong, torch.ones(1)))


def test_a_model_of_which_no_output_was_compared_is_not_called_equal() -> None:
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"shape": super().forward(x).shape}

    for model, inputs in ((Silent(2, 2), torch.ones(1, 2)), (nn.Linear(2, 2), torch.ones(0, 2))):
        report = check_equivalence(model, copy.deepcopy(model), inputs, seeds=1)
        assert {each.problem for each in report.failures} == {"no tensor of the outputs could be compared"}


def test_an_output_that_refers_to_itself_ends() -> None:
    def circle(x: Tensor) -> SimpleNamespace:
        node = SimpleNamespace(x=x)
        node.me = node
        return node

    assert check_equivalence(Function(circle), Function(circle), torch.ones(1)).equal


def test_inputs_in_dataclasses_and_packed_sequences_get_gradients() -> None:
    gru = nn.GRU(3, 4)
    packed = pack_sequence([torch.randn(n, 3) for n in (4, 2)])
    model = Function(lambda batch, scale: gru(batch.out)[1] * batch.rest["w"] * scale)
    report = check_equivalence(model, model, (Data(packed, {"w": torch.rand(4)}), 2))
    gradients = {each.place for each in report.comparisons if each.kind == "input gradient"}
    assert gradients == {"input[0].out.data", "input[0].rest['w']"}
