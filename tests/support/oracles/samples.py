"""Calls of torch's operations: torch's own sample inputs, in all forms that an operation has."""

from __future__ import annotations

import builtins
import itertools
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode
from torch.testing._internal import common_utils
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo import core
from torch.utils import _pytree as pytree

from passes.graph import leaf_functions
from passes.operations.catalogue import operation_of
from passes.operations.in_place import writes_first
from passes.operations.operation import Operation

DOUBLE = torch.float64
SPACES = (torch, F, torch.Tensor, operator, builtins, torch.ops.aten, rnn, leaf_functions, list, dict)
#: What is called: a function, or the name of a method; and with what.
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
# What torch says of arguments that a function does not take.
REFUSALS = (TypeError, RuntimeError, ValueError, AttributeError, IndexError, NotImplementedError)


def named(name: str) -> Iterator[Any]:
    """Yield what is called so, wherever torch or Python has it."""
    for space in SPACES:
        for each in (name, f"{name}_", f"_{name}", f"__{name}__", name.replace(".", "_")):
            try:
                yield operator.attrgetter(each)(space)
            except (AttributeError, RuntimeError):
                continue


def overloads_of(operation: Operation) -> dict[str, torch._ops.OpOverload]:
    """Return all that ``torch.ops.aten`` has by the names of an operation, but what writes to a tensor."""
    packets = itertools.chain(*map(named, (operation.name, *operation.aliases)))
    found = {
        str(overload): overload
        for packet in packets
        if isinstance(packet, torch._ops.OpOverloadPacket)
        for overload in (getattr(packet, each) for each in packet.overloads())
    }
    return {name: each for name, each in found.items() if not each._schema.is_mutable}


def name_of(entry: Any) -> str:
    """Return the name of one of torch's entries, as a method has it."""
    return str(entry.name).replace("nn.functional.", "").replace(".", "_")


#: Torch's own entries for what the catalogue knows, in float64.
ENTRIES = [each for each in op_db if DOUBLE in each.dtypes and operation_of(name_of(each)) is not None]


def entries(chosen: Callable[[Operation], bool]) -> list[Any]:
    """Return the entries of some operations, as parameters of a test."""
    return [
        pytest.param(each, id=f"{each.name} {each.variant_test_name}".strip())
        for each in ENTRIES
        if (known := operation_of(name_of(each))) is not None and chosen(known)
    ]


class Recorded(TorchFunctionMode):
    """Keeps the calls that are made of known operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation_of(func) is not None:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def all_samples(entry: Any) -> list[Any]:
    """Return torch's samples of an operation.

    All of them: a generator that is left open would be closed in the middle of another test. For each seed
    that is set, torch keeps a written stack, which takes longer than the sample; and it looks through the
    stack for a ``unittest.TestCase``, by way of all modules: a quarter of a second where many are loaded.
    """
    with (
        patch.object(common_utils, "extract_test_fn", lambda: None),
        patch.object(core, "extract_test_fn", lambda: None),
    ):
        return list(entry.sample_inputs("cpu", DOUBLE, requires_grad=False, set_seed=False))


def calls(entry: Any, count: int = 8, *, spread: bool = False) -> Iterator[Call]:
    """Yield calls of an operation that torch's samples make, as Python sees them: first ones, or of all."""
    torch.manual_seed(0)
    with _quietly():
        samples = all_samples(entry)
        for sample in samples[:: -(-len(samples) // count) or 1] if spread else samples[:count]:
            recorded = Recorded()
            with recorded:
                entry.op(sample.input, *sample.args, **sample.kwargs)
            # A sample may prepare its operands with other operations.
            own = [each for each in recorded.calls if operation_of(each[0]) is operation_of(name_of(entry))]
            yield from (own or recorded.calls)[:1]


def in_all_forms(call: Call) -> Iterator[tuple[Call, Any]]:
    """Yield a call, and what it returns, in each form of the operation that takes its arguments."""
    function, args, kwargs = call
    operation = operation_of(function)
    assert operation is not None
    found: list[Any] = [function, *overloads_of(operation).values()]
    names = (operation.name, *operation.aliases)
    spaces = (torch, F, torch.special, torch.linalg, operator)
    found += [getattr(space, name.rpartition(".")[2], None) for space in spaces for name in names]
    found += [name for name in names if hasattr(Tensor, name)]
    # Options that are not used may be unknown to another form.
    needed = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    for form, options in itertools.product(dict.fromkeys(found), [kwargs, needed]):
        if form is None or operation_of(form) is not operation or writes_first(form, args, options):
            continue
        try:
            with _quietly():
                torch.manual_seed(0)
                result = run((form, args, options))
        except REFUSALS:
            # Another form's arguments.
            continue
        yield (form, args, options), result


def run(call: Call) -> Any:
    """Make a call."""
    function, args, kwargs = call
    if isinstance(function, str):
        return getattr(args[0], function)(*args[1:], **kwargs)
    return function(*args, **kwargs)


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in arguments or results."""
    return [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor)]
