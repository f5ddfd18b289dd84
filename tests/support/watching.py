"""See what a rewrite touched, and which kernels run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def snapshot(model: nn.Module) -> list[object]:
    """Describe everything about a model that a rewrite could touch."""
    described: list[object] = [torch.get_rng_state().tolist()]
    for name, module in model.named_modules():
        described.append((name, id(module), type(module), module.training))
        for key, value in module.__dict__.items():
            content = [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else id(value)
            described.append((key, content))
    for parameter in model.parameters():
        values: object = (parameter.tolist(), id(parameter.grad), parameter.requires_grad, parameter._version)
        described += [values]
    return described


def calls_noted(monkeypatch: pytest.MonkeyPatch, steps: type) -> list[int]:
    """Return a list that gets the number of each step that objects of a type are called for."""
    made: list[int] = []
    plain: Any = steps.__call__

    def call(self: Any, t: int, place: int) -> None:
        made.append(t)
        plain(self, t, place)

    monkeypatch.setattr(steps, "__call__", call)
    return made


def tapes_noted(record: Any) -> tuple[Any, list[weakref.ref[Any]]]:
    """Return what records as ``record`` does but fails while an earlier tape is held, and its tapes."""
    tapes: list[weakref.ref[Any]] = []

    def alone(*args: Any, **kwargs: Any) -> Any:
        assert not any(tape() for tape in tapes)
        tape, base = record(*args, **kwargs)
        tapes.append(weakref.ref(tape))
        return tape, base

    return alone, tapes


def assert_threads_change_nothing(explain: Callable[[], Any]) -> None:
    """Explain with one thread of torch and with four."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(explain())
    finally:
        torch.set_num_threads(threads)
    # torch divides its matrix products among threads as it likes.
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6 * np.abs(found[0]).max())


class NoFusedKernels(TorchFunctionMode):
    """Fail when anything asks torch for a recurrent kernel."""

    FUSED = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert getattr(func, "__name__", "") not in self.FUSED, func
        return func(*args, **(kwargs or {}))
