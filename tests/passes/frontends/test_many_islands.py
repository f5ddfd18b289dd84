"""Modules that stay code are found at once where their code tells, and are the same as found one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from passes.frontends import tracing
from passes.frontends.tracing import trace_where_possible
from passes.user_code.audit import RanCode
from rewriter import decompose


class Optional(nn.Module):
    """Asks whether a value is None, which a graph would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return torch.tanh(self.linear(x)) if h is None else torch.tanh(self.linear(x) + h)


class Pair(Optional):
    def forward(self, x: Tensor, h: Any = None) -> Any:
        return [super().forward(x, h)] * 2


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x


class Steps(nn.Module):
    """A cell of its own for each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Optional() for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        h: Any = None
        for t, cell in enumerate(self.cells):
            h = cell(x[:, t], h)
        return h


class Nested(nn.Module):
    """Islands of several depths, and one that is found by what it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Sequential(Optional(), nn.Tanh()), Optional(), Optional())
        self.counting = nn.ModuleList([Counting(), Counting()])
        self.last = Optional()

    def forward(self, x: Tensor) -> Tensor:
        for each in self.counting:
            x = each(x)
        return self.last(self.outer(x), x)


class Calls(nn.Module):
    """Its code calls a module that is registered elsewhere, and both would be fixed."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.other = [other]

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.other[0](x if h is None else h)


class Reaches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Optional()
        self.long_name = Calls(self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.long_name(x)


class Iterates(nn.Module):
    """Fails once the first cell is a call, over whose result a trace cannot iterate."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Pair(), Pair(), Pair()])

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            x = sum(each * 2 for each in cell(x))
        return x


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many modules each trace kept whole."""
    made: list[int] = []
    plain = tracing._try_trace

    def _try_trace(model: nn.Module, opaque: Any, layers: Any, sizes: Any) -> Any:
        made.append(len(opaque))
        return plain(model, opaque, layers, sizes)

    monkeypatch.setattr(tracing, "_try_trace", _try_trace)
    return made


def test_a_module_per_step_takes_two_traces(traces: list[int]) -> None:
    traced = trace_where_possible(Steps(12))
    assert isinstance(traced.model, fx.GraphModule)
    assert list(traced.islands) == [f"cells.{t}" for t in range(12)]
    assert all("tests whether a value is None" in reason for reason in traced.islands.values())
    assert traces == [0, 12]


@pytest.mark.parametrize(
    "make", [lambda: Steps(11), Nested, Reaches, Iterates], ids=["steps", "nested", "reaches", "iterates"]
)
def test_the_same_as_one_by_one(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    at_once = trace_where_possible(model)
    monkeypatch.setattr(RanCode, "one_by_one", lambda *_: iter(()))
    alone = trace_where_possible(model)
    assert list(at_once.islands.items()) == list(alone.islands.items())
    assert isinstance(at_once.model, fx.GraphModule) == isinstance(alone.model, fx.GraphModule)
    if isinstance(at_once.model, fx.GraphModule) and isinstance(alone.model, fx.GraphModule):
        assert at_once.model.code == alone.model.code


def test_a_trace_that_fails_with_all_of_them_is_made_again_with_one(traces: list[int]) -> None:
    traced = trace_where_possible(Iterates())
    assert list(traced.islands) == ["cells.0", ""]
    assert traces == [0, 3, 1]


def test_the_result_is_proven() -> None:
    model, x = Steps(4), torch.randn(2, 4, 3)
    assert torch.equal(decompose(model, x)(x), model(x))
