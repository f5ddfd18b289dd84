"""Each way to call what decompose returns is compared with the original, or the report says why it is not."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import RewriteError, decompose, diagnose, unroll

X = torch.randn(2, 4, 3)
FACTOR = 2.0
DEEP = [[[[[[1.0]]]]]]
SWITCH: ContextVar[float] = ContextVar("switch", default=1.0)


class Follows(nn.Module):
    """What a graph of it fixes changes later, which only the original tells."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.GRU(3, 3, batch_first=True)
        self.head = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.g(x)[0])
        return y * FACTOR


def is_told(rewritten: Any, call: Callable[..., Any], model: nn.Module) -> bool:
    """Whether a call gives what the original does, and the report has it."""
    torch.testing.assert_close(call(X), model(X), rtol=0, atol=1e-6)
    return bool(rewritten.report.proven) or bool(rewritten.report.proven.notes)


def hooked(rewritten: nn.Module) -> nn.Module:
    rewritten.get_submodule("head").register_forward_hook(lambda *_: None)
    return rewritten


MADE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "rolled": decompose,
    "copied": lambda model: copy.deepcopy(decompose(model)),
    "unrolled by length": lambda model: unroll(model, length=4),
    "unrolled again": lambda model: unroll(decompose(model), length=4),
    "hooked": lambda model: hooked(decompose(model)),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("directly", [False, True])
def test_a_call_is_compared(
    make: Callable[[nn.Module], nn.Module], directly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Follows().eval()
    rewritten: Any = make(model)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    call = rewritten.forward if directly else rewritten
    if make is MADE["hooked"]:
        # To become the code would drop the hook.
        with pytest.raises(RewriteError, match="computes something else than the original"):
            call(X)
        return
    assert is_told(rewritten, call, model)
    assert rewritten.report.proven.runs == ["Tensor float32 (2, 4, 3) on cpu"]
    # By the line that multiplies, not that at which the forward begins.
    line = Follows.forward.__code__.co_firstlineno + 2
    assert f"first in the model itself (test_what_is_proven.py:{line})" in rewritten.report.islands[""]


@pytest.mark.parametrize("make", [lambda model: model, decompose])
def test_steps_that_are_written_out_are_compared_at_once(
    make: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Follows().eval()
    given = make(model)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    flat: Any = unroll(given, X)
    assert flat.report.proven.runs[:2] == ["the example inputs", "the same again"]
    torch.testing.assert_close(flat(X), model(X), rtol=0, atol=1e-6)
    with pytest.raises(RewriteError, match="steps"):
        unroll(given, length=3)(X)


def test_diagnose_compares_before_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Follows().eval()
    rewritten: Any = decompose(model)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    found = diagnose(rewritten, X, 0 * X, output=lambda y: y[:, -1])
    assert rewritten.report.proven
    largest = max(float(model(each)[:, -1].detach().abs().max()) for each in (X, 0 * X))
    assert found.scale == pytest.approx(largest, rel=1e-5)


def test_a_model_that_was_hooked_before_is_compared_with_its_hooks() -> None:
    model = Follows().eval()
    model.head.register_forward_hook(lambda *args: args[2] * 3)
    rewritten = decompose(model)
    assert is_told(rewritten, rewritten, model)
    assert rewritten.report.proven.runs


def transformed(rewritten: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: rewritten(row[None])[0])(x)


def derived(rewritten: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vjp(rewritten, x)[0]


def replaced(rewritten: nn.Module, x: Tensor) -> Tensor:
    rewritten.add_module("head", nn.LeakyReLU(0.1))
    return rewritten(x)


def loaded(rewritten: nn.Module, x: Tensor) -> Tensor:
    again: Any = pickle.loads(pickle.dumps(rewritten))
    assert not again.report.proven
    y: Tensor = again(x)
    rewritten.report.proven.notes += again.report.proven.notes
    return y


NOTES = {
    transformed: "in a transform of torch.func",
    derived: "in a transform of torch.func",
    replaced: "head is none of the modules that decompose made",
    loaded: "loaded from a pickle",
}


@pytest.mark.parametrize("call", NOTES)
def test_what_cannot_be_compared_is_noted_once(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = Follows().eval()
    rewritten: Any = decompose(model)
    for _ in range(2):
        torch.testing.assert_close(call(rewritten, X), model(X), rtol=0, atol=1e-6)
    proven = rewritten.report.proven
    assert not proven
    assert NOTES[call] in proven.notes[0]
    if call is not loaded:
        assert len(proven.notes) == 1
    assert proven.notes[0] in str(rewritten.report)
    if call in (transformed, derived):
        rewritten(X)
        assert proven.runs


def test_what_is_switched_off_is_noted() -> None:
    for made in (decompose(Follows(), prove=False), decompose(Follows(), X, prove=False)):
        report: Any = made.report
        assert report.proven.notes == ["not compared: prove=False"]
        assert "not compared with the original so far" in str(report)


class ByDtype(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * {torch.float32: 2.0, torch.float64: 5.0}[torch.get_default_dtype()]


class ByAlgorithms(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if torch.are_deterministic_algorithms_enabled() else 5.0)


class ByContext(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * SWITCH.get()


class ByEnvironment(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(os.environ.get("A_FACTOR", "1"))


class ByDepth(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * DEEP[0][0][0][0][0][0]


class Settings:
    def __init__(self, factor: float) -> None:
        self.factor = factor


class Nested:
    def __init__(self, factor: float) -> None:
        self.inner = Settings(factor)


NESTED = Nested(2.0)


class ByObject(Follows):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * NESTED.inner.factor


CHANGED: dict[type[Follows], Callable[[pytest.MonkeyPatch], Any]] = {
    ByDtype: lambda _: torch.set_default_dtype(torch.float64),
    ByAlgorithms: lambda _: torch.use_deterministic_algorithms(True),
    ByContext: lambda _: SWITCH.set(4.0),
    ByEnvironment: lambda patch: patch.setenv("A_FACTOR", "4"),
    ByDepth: lambda _: DEEP[0][0][0][0][0].__setitem__(0, 7.0),
    ByObject: lambda patch: patch.setattr(NESTED, "inner", Settings(7.0)),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_proof_ends_where_what_the_code_goes_by_changes(
    kind: type[Follows], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind().eval()
    rewritten: Any = decompose(model)
    torch.testing.assert_close(rewritten(X), model(X), rtol=0, atol=1e-6)
    rewritten(X)
    assert len(rewritten.report.proven.runs) == 1
    try:
        CHANGED[kind](monkeypatch)
        torch.testing.assert_close(rewritten(X), model(X), rtol=0, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        SWITCH.set(1.0)
