"""The records of torch's operations, held against torch itself: its names, schemas and sample inputs."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import BinaryUfuncInfo, UnaryUfuncInfo
from torch.utils import _pytree as pytree

from passes.operations.catalogue import OPERATIONS, arguments_of, operation_of, why_not_linear
from passes.operations.in_place import out_of_place, writes_first
from passes.operations.operation import Kind, Operation
from tests.support.oracles.samples import DOUBLE, calls, entries, name_of, named, tensors_of

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

# Methods of Python's that an object need not have, arrays of numpy's, and sequences packed by C++.
ELSEWHERE = {
    *("float_", "index_", "complex_", "rmod", "rdiv", "rfloordiv", "rtruediv", "rnn_pad", "array"),
    *("grid_sampler", "values", "items", "get"),
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_names_are_those_of_torch(operation: Operation) -> None:
    for name in (operation.name, *operation.aliases):
        assert name in ELSEWHERE or next(named(name), None) is not None, name
        assert operation_of(name.replace(".", "_")) is operation


def forms(operation: Operation) -> list[list[str]]:
    """Return the names of the parameters of each form, as torch's schemas and Python functions have them."""
    own = {"train": "training", "self": "input" if "input" in operation.parameters else operation.first}
    found = []
    for function in itertools.chain(*map(named, (operation.name, *operation.aliases))):
        if isinstance(function, torch._ops.OpOverloadPacket):
            schemas = [getattr(function, each)._schema for each in function.overloads()]
            found += [[each.name for each in schema.arguments] for schema in schemas]
        elif inspect.isfunction(function) and function.__module__.startswith("torch"):
            try:
                found.append(list(inspect.signature(function).parameters))
            except ValueError:  # of a builtin in other clothes
                continue
    return [[own.get(name, name) for name in each] for each in found if not {"args", "kwargs"} & set(each)]


# Operators and methods of Python's, and functions that take their arguments in two ways.
WITHOUT_SIGNATURE = {
    *("getitem", "setitem", "with_item", "rmatmul", "rpow", "rmod", "rfloordiv", "rtruediv", "einsum"),
    "new_tensor",
}


@pytest.mark.parametrize(
    "operation",
    [each for each in OPERATIONS if each.parameters and each.name not in WITHOUT_SIGNATURE],
    ids=lambda each: each.name,
)
def test_parameters_are_those_of_torch(operation: Operation) -> None:
    found = forms(operation)
    own = [name.lstrip("*") for name in operation.parameters]
    unknown = set(own) - {name for form in found for name in form}
    assert not unknown, found
    # At least one form has them in this order.
    shared = [[name for name in form if name in own] for form in found]
    assert any(
        each == [name for name in own if name in each] for each in shared if len(each) > 1 or len(own) == 1
    )


def test_every_elementwise_function_with_a_derivative_is_known() -> None:
    """By torch's own list; what is left has whole numbers beside, or numbers of another kind."""
    listed = [each for each in op_db if isinstance(each, UnaryUfuncInfo | BinaryUfuncInfo)]
    smooth = [each for each in listed if DOUBLE in each.dtypes and each.supports_autograd]
    assert len(smooth) > 100
    assert {each.name for each in smooth if operation_of(name_of(each)) is None} == {
        "nextafter",
    }


def moved(call: Any, varying: set[int], t: float, directions: dict[int, Tensor]) -> list[Tensor]:
    """Call a function again, with what varies moved by ``t`` times its direction."""
    function, args, kwargs = call
    args, kwargs = pytree.tree_map_only(
        Tensor,
        lambda x: x + t * directions[id(x)] if id(x) in varying else x.clone(),
        (args, kwargs),
    )
    torch.manual_seed(0)
    return [each for each in tensors_of(function(*args, **kwargs)) if each.is_floating_point()]


# They round to fewer digits, or make numbers of which this test has no difference.
COARSE = {"float", "half", "bfloat16", "cfloat", "chalf", "cdouble"}
NOTHING = {
    # They are linear in nothing: roundings, random numbers.
    *("div floor_rounding", "div trunc_rounding", "nn.functional.feature_alpha_dropout with_train"),
    # A view of a larger tensor's memory cannot be taken of a copy.
    "as_strided partial_views",
}


@pytest.mark.parametrize(
    "entry",
    entries(lambda each: each.kind in (Kind.LINEAR, Kind.PRODUCT) and each.name not in COARSE),
)
def test_what_is_called_linear_is(entry: Any) -> None:
    """For every choice of what varies in which a record calls it linear, the function is affine."""
    checked = 0
    for call in calls(entry):
        function, args, kwargs = call
        operation = operation_of(function)
        assert operation is not None
        floats = [each for each in tensors_of((args, kwargs)) if each.is_floating_point()]
        arguments = arguments_of(operation, function, args, kwargs)
        for count in range(1, 1 << min(len(floats), 4)):
            varying = {id(each) for k, each in enumerate(floats) if count >> k & 1}

            def varies(value: Any, varying: set[int] = varying) -> bool:
                return any(id(each) in varying for each in pytree.tree_leaves(value))

            if why_not_linear(operation, arguments, varies, lambda _: False) is not None:
                continue
            if f"{entry.name} {entry.variant_test_name}" in NOTHING:
                return
            directions = {id(each): torch.randn_like(each) for each in floats}
            ends = [moved(call, varying, t, directions) for t in (-1, 0, 2)]
            for low, middle, high in zip(*ends, strict=True):
                found = torch.cat([low.flatten(), high.flatten(), torch.ones(1)]).abs()
                size = float(found[found.isfinite()].max())
                # Sums of some hundred products, of numbers below 100.
                torch.testing.assert_close(
                    middle, low + (high - low) / 3, rtol=0, atol=1e-11 * size, equal_nan=True
                )
            checked += 1
    assert checked or f"{entry.name} {entry.variant_test_name}" in NOTHING


@pytest.mark.parametrize("entry", entries(lambda each: each.kind is Kind.DISCRETE))
def test_what_is_called_discrete_is_whole(entry: Any) -> None:
    for function, args, kwargs in calls(entry):
        for each in tensors_of(function(*args, **kwargs)):
            assert not each.is_floating_point() or torch.equal(each, each.round())


IN_PLACE = [name for name in dir(torch.Tensor) if name.endswith("_") and not name.startswith("_")]


@pytest.mark.parametrize("name", IN_PLACE)
def test_forms_in_place_are_told_from_others(name: str) -> None:
    """The schema of a form that writes says so; those that move numbers, or cut a gradient, write none."""
    operation, packet = operation_of(name), getattr(torch.ops.aten, name, None)
    if packet is None or operation is None:
        return
    schema = getattr(packet, packet.overloads()[0])._schema
    assert schema.arguments[0].alias_info.is_write
    assert writes_first(name) is not (operation.moves or operation.kind is Kind.CUT)
    assert not writes_first(name[:-1])
    plain = out_of_place(name)
    assert plain is None or plain == name[:-1]
