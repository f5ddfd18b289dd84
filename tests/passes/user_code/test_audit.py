"""Whatever a trace would fix silently is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.frontends.tracing import trace_where_possible
from passes.user_code.source import is_users
from rewriter import decompose


class IsNone(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x if y is None else x + y


class IsNotNone(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is not None:
            x = x + y
        return x


class IsOther(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x if x is y else x + y


class TypeTest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if isinstance(x, Tensor) else x


class Deep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def inner(self, x: Tensor) -> Tensor:
        return 2 * x if hasattr(x, "imag_part") else x


class Training(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


class TrainingOfChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) if self.child.training else x


class Counts(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Collects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


class WithBlock(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return 2 * x


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Catches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x * len(x)
        except RuntimeError:
            return x


class Matches(nn.Module):
    def forward(self, x: Any) -> Any:
        match x:
            case [_]:
                return 2 * x
        return x


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(2)


class Creates(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.ones(1, 2), x])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (IsNone(), "tests whether a value is None"),
        (IsNotNone(), "tests whether a value is None"),
        (IsOther(), "tests the identity of a value"),
        (TypeTest(), "calls isinstance"),
        (Deep(), "Deep.inner"),
        (Training(), "reads training"),
        (TrainingOfChild(), "reads training"),
        (Counts(), "calls, which a method assigns"),
        (Collects(), "stores values"),
        (WithBlock(), "with or try"),
        (Decorated(), "decorator that switches gradients"),
        (Catches(), "with or try"),
        (Draws(), "random numbers"),
        (Creates(), "creates a tensor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_reason(model: nn.Module, reason: str) -> None:
    traced = trace_where_possible(model)
    assert traced.model is model
    assert reason in traced.islands[""]


class Chooses(nn.Module):
    """Decides by what it was built with: the same in every call."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        if isinstance(self.head, nn.Linear):
            x = self.head(x)
        return x


@pytest.mark.parametrize("norm", [None, nn.LayerNorm(2)])
def test_decisions_by_own_attributes_are_traced(norm: nn.Module | None) -> None:
    assert trace_where_possible(Chooses(norm)).islands == {}


class ReadsInComprehension(nn.Module):
    """Has a local that a comprehension reads."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs() + 1
        parts = [x[:, k : k + 1] / scale for k in range(2)]
        return torch.cat(parts, 1)


def test_a_local_that_a_comprehension_reads_is_no_state() -> None:
    assert trace_where_possible(ReadsInComprehension()).islands == {}


class WritesToOuter(nn.Module):
    """Has a function that assigns a local of the function around it."""

    def forward(self, x: Tensor) -> Tensor:
        total = x

        def add() -> None:
            nonlocal total
            total = total + 1

        add()
        return total


def test_a_local_that_an_inner_function_assigns_is_state() -> None:
    assert "assigns total" in trace_where_possible(WritesToOuter()).islands[""]


def test_random_state_and_model_stay() -> None:
    model = Collects()
    before = torch.get_rng_state()
    trace_where_possible(model)
    trace_where_possible(Draws())
    assert model.seen == []
    assert torch.equal(torch.get_rng_state(), before)


class CountsInBuffer(nn.Module):
    """Writes to a buffer, by assignment or in place."""

    def __init__(self, *, assign: bool) -> None:
        super().__init__()
        self.assign = assign
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.assign:
            self.calls += 1
        else:
            self.calls.add_(1)
        return self.gru(x)[0] * self.calls


class CountsInPlace(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


class Renormalises(nn.Module):
    """Gives a weight new data in each call, as max-norm constraints do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 0.1)
        return self.gru(self.linear(x))[0]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: CountsInBuffer(assign=True), lambda: CountsInBuffer(assign=False), Renormalises]
)
def test_tensors_of_the_original_are_not_written(make: Callable[[], nn.Module], flat: bool) -> None:
    model = make()
    x = torch.randn(5, 2, 3)
    values = [t.clone() for t in model.state_dict().values()]
    rewritten = decompose(model, x if flat else None)
    assert all(torch.equal(a, b) for a, b in zip(values, model.state_dict().values(), strict=True))
    assert "" in rewritten.report.islands
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(rewritten(x), expected, rtol=0, atol=1e-6)


def test_reason_names_the_tensor() -> None:
    model = nn.Sequential(CountsInPlace())
    assert "writes to 0.calls" in trace_where_possible(model).islands["0"]


def test_code_of_this_distribution_is_nobodys_wherever_it_lies() -> None:
    import passes
    import rewriter

    for package in (passes, rewriter):
        root = Path(str(package.__file__)).parent
        assert not is_users(str(root / "layers.py"))
        assert not is_users(str(root / "recurrent" / "deeper" / "layers.py"))
    assert is_users(str(root.parent / "model.py"))
