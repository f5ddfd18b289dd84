"""What has no slope: shapes, blanks, whole numbers and cut gradients, against torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.operations.catalogue import OPERATIONS, arguments_of, is_blind, operation_of, why_not_linear
from passes.operations.operation import CUTS, Kind, Operation
from passes.operations.without_slope.records import CALLS
from rewriter import DeepExplainer, decompose
from tests.support.oracles.samples import DOUBLE, named, tensors_of

#: Arguments behind the tensor with which some operation or other can be called.
BEHIND: tuple[tuple[Any, ...], ...] = (
    *((), (0,), (1,), (2,), (0.5,), ((2, 2),), (2, 0, 0.1), ((2, 2), 0.7), ((2, 2), (2, 1))),
    *((0.5, 1), (1, True), ("",), (Tensor,), (torch.zeros(3, 3),), (lambda grad: None,)),
)


def forms(operation: Operation) -> list[Any]:
    """Return all that is called so, but what writes in place, and what is no tensor's."""
    names = (operation.name, *operation.aliases)
    found = [each for name in names for each in named(name) if callable(each) or hasattr(each, "__get__")]
    return [each for each in found if not str(getattr(each, "__name__", "")).rstrip("_").endswith("resize")]


def results(operation: Operation, x: Tensor) -> Iterator[tuple[Any, Any]]:
    """Yield what each form makes of a tensor, with a mark of the form and of the arguments."""
    for k, form in enumerate(forms(operation)):
        writes = str(getattr(form, "__name__", "")).endswith("_") and "__" not in str(form)
        if writes:
            continue
        for j, rest in enumerate(BEHIND):
            try:
                if hasattr(form, "__get__") and not callable(form):
                    yield (k, j), form.__get__(x)
                    break
                yield (k, j), form(x, *rest)
            except Exception:
                continue


def numbers_in(value: Any) -> list[Any]:
    """Return the numbers of a result; what is written in letters leads to none."""
    found: list[Any] = [each.detach().tolist() for each in tensors_of(value)]
    return [*found, value] if isinstance(value, bool | int | float | complex | tuple) and not found else found


def start() -> Tensor:
    return torch.tensor([[0.3, 1.7, -0.4], [2.5, -1.1, 0.9], [0.2, 0.6, 3.1]], dtype=DOUBLE)


def move(x: Tensor) -> None:
    """Change the numbers where they lie, so that neither a place nor a version changes."""
    x.detach().numpy()[...] = [[-7.3, 0.7, 5.4], [0.1, 2.1, -3.9], [1.2, -0.6, 0.1]]


def changed(operation: Operation) -> list[Any]:
    """Return what changes with the numbers of a tensor alone."""
    x = start()
    before = {mark: numbers_in(result) for mark, result in results(operation, x)}
    move(x)
    after = {mark: numbers_in(result) for mark, result in results(operation, x)}
    return [mark for mark in before if mark not in after or before[mark] != after[mark]]


def is_deterministic(operation: Operation) -> bool:
    """Whether a result is written, and the same each time."""
    return operation.kind is not Kind.RANDOM and "empty" not in operation.name


BLIND = [
    each
    for each in OPERATIONS
    if (each.blind or each.kind is Kind.SHAPE) and each.first not in each.reads and is_deterministic(each)
]
CUT = [each for each in OPERATIONS if each.kind is Kind.CUT]


@pytest.mark.parametrize("operation", BLIND, ids=lambda each: each.name)
@pytest.mark.filterwarnings("ignore")
def test_what_is_blind_sees_no_numbers(operation: Operation) -> None:
    assert not changed(operation)


def keeps_a_gradient(operation: Operation) -> bool:
    x = start().requires_grad_()
    return any(each.requires_grad for _, result in results(operation, x) for each in tensors_of(result))


@pytest.mark.parametrize("operation", CUT, ids=lambda each: each.name)
@pytest.mark.filterwarnings("ignore")
def test_what_is_cut_has_no_gradient(operation: Operation) -> None:
    assert not keeps_a_gradient(operation)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["logcumsumexp", "renorm", "cummax", "sort"])
def test_a_wrong_record_of_what_is_blind_is_seen(name: str) -> None:
    assert changed(Operation(name, Kind.SHAPE, blind=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["median", "quantile"])
def test_a_wrong_record_of_what_is_cut_is_seen(name: str) -> None:
    assert keeps_a_gradient(Operation(name, Kind.CUT))


NUMBER = torch.tensor(2.0)
FILLED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "full": (torch.full, ((4,), NUMBER)),
    "tensor": (torch.tensor, (NUMBER,)),
    "scalar_tensor": (torch.scalar_tensor, (NUMBER,)),
    "linspace": (torch.linspace, (0, NUMBER, 4)),
    "logspace": (torch.logspace, (0, NUMBER, 4)),
    "arange": (torch.arange, (0, NUMBER)),
    "full_like": (torch.full_like, (torch.zeros(3), NUMBER)),
    "new_full": ("new_full", (torch.zeros(3), (3,), NUMBER)),
    "new_tensor": ("new_tensor", (torch.zeros(3), NUMBER)),
}


def depends(value: Any) -> bool:
    return value is NUMBER or (isinstance(value, list | tuple) and any(map(depends, value)))


@pytest.mark.parametrize("name", FILLED)
def test_a_blank_that_is_filled_with_what_varies_is_cut(name: str) -> None:
    function, args = FILLED[name]
    operation = operation_of(function)
    assert operation is not None
    assert not is_blind(function, args, {}, depends)
    assert (
        why_not_linear(operation, arguments_of(operation, function, args, {}), depends, lambda _: False)
        == CUTS
    )
    # With a number that is known, it is a blank.
    known = tuple(0.5 if each is NUMBER else each for each in args)
    assert (
        why_not_linear(operation, arguments_of(operation, function, known, {}), depends, lambda _: False)
        is None
    )
    assert not operation.blind or is_blind(function, known, {}, depends)


def test_every_blank_that_takes_a_number_is_tested() -> None:
    """Those that do not are blind to all that they are given."""
    assert {each.name for each in CALLS if each.kind is Kind.BLANK and (each.reads or not each.blind)} == set(
        FILLED
    )


@pytest.mark.parametrize("name", ["to", "type_as", "view_as", "reshape_as", "expand_as"])
def test_only_the_shape_or_the_type_of_another_tensor_matters(name: str) -> None:
    x, other = (torch.arange(4.0, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    for function in (name, getattr(Tensor, name)):
        assert is_blind(function, (x, other), {}, lambda each: each is other)
        assert not is_blind(function, (x, other), {}, lambda each: each is x)
    getattr(x, name)(other).sum().backward()
    assert x.grad is not None
    assert other.grad is None


class AsAnother(nn.Module):
    """Takes weights and masks of its own in the shape and the type of its input."""

    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.decides = decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() > 1e9:
            return x
        slope, mask = torch.full((1,), 0.2).to(x), torch.tensor([True, False, False]).expand_as(x)
        y = torch.prelu(x, slope).masked_fill(mask, 0.5)
        return y * torch.igamma(torch.full((3,), 1.5).type_as(x), x.exp())


@pytest.mark.parametrize("decides", [False, True])
def test_weights_in_the_shape_or_the_type_of_the_input_do_not_vary(decides: bool) -> None:
    x, background = torch.randn(3, 3, dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE)
    model = AsAnother(decides)
    assert not [each for each in decompose(model, x).report.uncovered if each.operation != "bool"]
    values = DeepExplainer(model, background).shap_values(x)
    # Each output is a function of one number: what it changes by is that number's.
    change = torch.diag_embed(model(x) - model(background).mean(0)).numpy()
    np.testing.assert_allclose(values, change, rtol=0, atol=1e-12)


class Of(nn.Module):
    """A function of features and of weights."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(3 * x, self.weight)


ROUNDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "to": lambda h, w: h.to(torch.long).float() * w,
    "to by keyword": lambda h, w: h.to(dtype=torch.int32).float() * w,
    "to on a device": lambda h, w: h.to("cpu", torch.int16).float() * w,
    "to true or false": lambda h, w: h.to(torch.bool).float() * w,
    "type": lambda h, w: h.type(torch.long).float() * w,
    "type by name": lambda h, w: h.type("torch.LongTensor").float() * w,
    "aten": lambda h, w: torch.ops.aten._to_copy.default(h, dtype=torch.long).float() * w,
    "sum": lambda h, w: h.sum(-1, keepdim=True, dtype=torch.long).float() * w,
    "beside": lambda h, w: h + h.to(torch.long).float() * w,
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_to_whole_numbers_is_reported(name: str) -> None:
    model, x = Of(ROUNDED[name]), torch.randn(4, 3)
    rewritten = decompose(model)
    assert torch.equal(rewritten(x), model(x))
    assert CUTS in [each.reason for each in rewritten.report.uncovered]


@pytest.mark.parametrize("option", [int, bool, torch.LongTensor, torch.int8, "torch.cuda.LongTensor"])
def test_types_of_whole_numbers_are_known_by_all_their_names(option: Any) -> None:
    for name in ("to", "type"):
        operation, x = operation_of(name), torch.ones(2)
        assert operation is not None
        arguments = arguments_of(operation, name, (x, option), {})
        assert (
            why_not_linear(operation, arguments, lambda value: isinstance(value, Tensor), lambda _: False)
            == CUTS
        )


def test_what_is_whole_already_loses_nothing() -> None:
    operation, tokens = operation_of("to"), torch.ones(2, dtype=torch.int32)
    assert operation is not None
    arguments = arguments_of(operation, "to", (tokens, torch.long), {})
    assert why_not_linear(operation, arguments, lambda value: value is tokens, lambda _: False) is None


CAST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "type": lambda h, w: torch.tanh(h.type(torch.float64)),
    "type by name": lambda h, w: torch.tanh(h.type("torch.DoubleTensor")),
    "to": lambda h, w: torch.tanh(h.to(torch.float64)),
    "like": lambda h, w: torch.tanh(h.type_as(w)),
}


@pytest.mark.parametrize("name", CAST)
def test_other_floating_point_numbers_keep_their_rule(name: str) -> None:
    model, x = Of(CAST[name]), torch.randn(4, 3)
    rewritten = decompose(model)
    assert [each.operation for each in rewritten.report.operations] == ["tanh"]
    assert not rewritten.report.uncovered
    assert not rewritten.report.islands
    assert torch.equal(rewritten(x), model(x))


def test_asking_for_the_class_is_no_cast() -> None:
    rewritten = decompose(Of(lambda h, w: torch.tanh(h) if type(h) is Tensor else h))
    assert "calls type(...)" in str(rewritten.report.islands)


MASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda h, w: h + (h > 0).float(),
    "call": lambda h, w: torch.add(h, (h > 0).float()),
    "beside": lambda h, w: torch.cat([h, (h > 0).float()], -1),
    "as the input": lambda h, w: h * (h > 0).type_as(h),
    "to the input": lambda h, w: h * (h > 0).to(h),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_that_is_made_of_the_input_is_reported(name: str) -> None:
    report = decompose(Of(MASKED[name])).report
    assert "a mask, index or number that depends on the input" in [each.reason for each in report.uncovered]
