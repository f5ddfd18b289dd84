"""Which functions the records are of, and what their parameters are called in every form."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from passes.operations.catalogue import OPERATIONS, arguments_of, operation_of, why_not_linear
from passes.operations.names import key_of
from passes.operations.operation import PRODUCT, Kind, Operation
from rewriter import decompose
from tests.support.oracles.samples import overloads_of


def normalize(input: Tensor) -> Tensor:
    """Compute what no function of torch's of that name computes."""
    return 3 * input


# As in a module of the user's whose name begins as torch's does.
normalize.__module__ = "torch_helpers"
fx.wrap("normalize")


@functools.wraps(F.normalize)
def dressed(input: Tensor) -> Tensor:
    """Look like torch's function."""
    return 4 * input


class relu:
    """A callable of the user's."""

    def __call__(self, input: Tensor) -> Tensor:
        return 5 * input


@pytest.mark.parametrize("function", [normalize, dressed, relu(), relu, math.sqrt, torch.masked.softmax])
def test_namesakes_are_not_taken_for_torchs(function: Any) -> None:
    assert operation_of(function) is None


def test_a_function_of_torchs_that_has_no_record_is_not_the_models_own() -> None:
    assert key_of(torch.masked.softmax) == "torch.masked._ops.softmax"
    assert key_of(normalize) is None


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return normalize(x) + 1


def test_a_function_of_the_users_stays() -> None:
    rewritten, x = decompose(Helped()), torch.randn(2, 3)
    assert torch.equal(rewritten(x), 3 * x + 1)
    assert [each.reason for each in rewritten.report.uncovered] == [
        "has no rule: a function of the model's own"
    ]


def of_tensors(overload: torch._ops.OpOverload) -> list[str]:
    """Return the names of the arguments that are tensors."""
    return [each.name for each in overload._schema.arguments if "Tensor" in str(each.type)]


def overloads(operation: Operation) -> list[torch._ops.OpOverload]:
    """Return the overloads of which a tensor is returned."""
    found = overloads_of(operation).values()
    return [each for each in found if any("Tensor" in str(given.type) for given in each._schema.returns)]


# Of lists and dictionaries, as TorchScript has them, and of sublists, which no function in Python hands on.
OF_CONTAINERS = {"aten.__getitem__", "aten.einsum.sublist", "aten.index.list"}


@pytest.mark.parametrize(
    "operation", [each for each in OPERATIONS if each.parameters], ids=lambda each: each.name
)
def test_tensors_of_every_overload_are_parameters(operation: Operation) -> None:
    """What is read by name (a factor, a mask) is found by that name."""
    for overload in overloads(operation):
        if str(overload).startswith(tuple(OF_CONTAINERS)):
            continue
        known = {name.lstrip("*") for name in operation.parameters}
        given = {name: f"value of {name}" for name in of_tensors(overload)}
        assert set(arguments_of(operation, overload, (), given)) <= known, (str(overload), given)
        if operation.kind is Kind.PRODUCT and len(operation.factors) == len(of_tensors(overload)):
            assert set(arguments_of(operation, overload, (), given)) == set(operation.factors)


@pytest.mark.parametrize(
    "call",
    [
        (torch.ops.aten.einsum.default, ("ij,jk->ik", ["x", "x"])),
        (torch.ops.aten.tensordot.default, ("x", "x", [1], [0])),
        (torch.ops.aten.linear.default, ("x", "x")),
    ],
    ids=lambda each: str(each[0]),
)
def test_products_in_atens_form_are_products(call: Any) -> None:
    function, args = call
    operation = operation_of(function)
    assert operation is not None

    def varies(value: Any) -> bool:
        return "x" in (value if isinstance(value, list) else [value])

    arguments = arguments_of(operation, function, args, {})
    assert why_not_linear(operation, arguments, varies, lambda _: False) == PRODUCT


class Products(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(2 * x) + 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.ops.aten.einsum.default("ij,jk->ik", [x, x]),
        lambda x: torch.ops.aten.tensordot.default(x, x, [1], [0]),
    ],
)
def test_products_in_atens_form_are_lowered(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Products(function), torch.randn(3, 3)
    rewritten = decompose(model)
    assert [each.atoms for each in rewritten.report.operations] == [1]
    assert not rewritten.report.uncovered
    assert torch.equal(rewritten(x), model(x))


DOCUMENTED = re.compile(r"[Aa]lias (?:for|of)\s+:(?:func|meth):`~?(?:torch\.)?(?:Tensor\.)?([\w.]+)")
SPACES = {"": torch, "special.": torch.special, "linalg.": torch.linalg, "Tensor.": torch.Tensor}


def documented_aliases() -> list[tuple[str, str]]:
    """Return the names that torch's documentation calls aliases, and of what."""
    found = []
    for prefix, space in SPACES.items():
        for name in dir(space):
            match = DOCUMENTED.search(str(getattr(getattr(space, name), "__doc__", "")))
            if match and not name.startswith("_"):
                found.append((f"{prefix.removeprefix('Tensor.')}{name}", match[1]))
    return found


@pytest.mark.filterwarnings("ignore")
def test_aliases_are_those_of_the_documentation() -> None:
    aliases = documented_aliases()
    assert len(aliases) > 40
    for alias, name in aliases:
        known = operation_of(name.replace(".", "_").rstrip("_"))
        found = operation_of(alias.replace(".", "_").rstrip("_"))
        # An alias may have a record of its own, of the same kind.
        assert known is None or (found is not None and found.kind is known.kind), (alias, name)
