"""What the records say of memory: a result that is written to changes nothing else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.operations.catalogue import OPERATIONS
from passes.operations.in_place import without_inplace
from passes.operations.operation import Operation
from rewriter import decompose
from tests.support.oracles.samples import DOUBLE, calls, entries, run, tensors_of

# Torch's samples would be made at half the speed under a measurement that is not about them.
pytestmark = pytest.mark.unmeasured
# They round to fewer digits, or make numbers of which no sample is in float64.
COARSE = {"float", "half", "bfloat16", "cfloat", "chalf", "cdouble"}


def memory_of(value: Any) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in tensors_of(value) if each.numel()}


@pytest.mark.parametrize("entry", entries(lambda each: each.fresh and each.name not in COARSE))
def test_what_is_called_fresh_shares_no_memory(entry: Any) -> None:
    for call in calls(entry, 60):
        assert not memory_of(call[1:]) & memory_of(run(call)), call


def tensors() -> Iterator[Tensor]:
    """Yield tensors for which many operations have nothing to do."""
    for shape in ((), (1,), (1, 1), (2, 2), (1, 4, 2, 2)):
        for dtype in (DOUBLE, torch.long):
            yield torch.zeros(shape, dtype=dtype)


def idle_arguments(x: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield arguments with which an operation may leave a tensor as it is."""
    shape = tuple(x.shape)
    yield from (
        (),
        (0,),
        (1,),
        (0, 0),
        (1, 0),
        (1, 1),
        (x.dtype,),
        (shape,),
        ((1,) * x.dim(),),
        ([],),
        (None,),
    )
    yield from ((0, 0, 0), (1, 1, 1), (1, 0, 0), ((0,),), ((0,), (0,)), (0, [0]), (0, [None]), (2.0, 0, 1e30))


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.fresh], ids=lambda each: each.name)
def test_what_has_nothing_to_do_shares_no_memory_either(operation: Operation) -> None:
    # Methods in C: ``torch.Tensor.index`` in Python is for dimensions that have names.
    forms = [getattr(space, operation.name, None) for space in (torch, F, torch._C.TensorBase)]
    with contextlib.suppress(AttributeError):  # a method alone, or of Python's
        forms.append(operation.function)
    for x in tensors():
        letters = "abcde"[: x.dim()]
        for form in filter(None, dict.fromkeys(forms)):
            given = itertools.chain(
                ((x, *rest) for rest in idle_arguments(x)),
                (((x,),), ([x],), (f"{letters}->{letters}", x), (f"{letters}->{letters}", [x])),
            )
            for each in given:
                args, options = without_inplace(form, each, {})
                try:
                    made = form(*args, **options)
                except Exception:
                    continue
                assert x.numel() == 0 or not memory_of(x) & memory_of(made), (form, args)


class Written(nn.Module):
    """Writes to what a function returns, and uses what it was given."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        y = self.function(h)
        y += 1
        return torch.tanh(h)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.einsum("ij->ji", h),
        lambda h: torch.einsum("ij", h),
        lambda h: h.sum_to_size(3, 3),
    ],
)
def test_a_view_that_is_written_to_writes_to_its_base(function: Any) -> None:
    model, x = Written(function), torch.randn(3, 3)
    expected = model(x)
    assert not torch.equal(expected, torch.tanh(2 * x))
    assert torch.equal(decompose(model)(x), expected)
