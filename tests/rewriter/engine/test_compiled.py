"""The steps in C against torch's operations."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rewriter import DeepExplainer
from rewriter.engine.sweeps.compiled import CompiledSteps, compiled_cell
from rewriter.engine.sweeps.sweep import Swept
from tests.support.models import gallery
from tests.support.watching import assert_threads_change_nothing, calls_noted

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
# Relative to the largest attribution: sums of some hundred roundings.
CLOSE = {torch.float32: 2e-6, torch.float64: 1e-13}


class Packed(nn.Module):
    """A layer that reads sequences of different lengths, from both ends."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 5, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([6, 3, 5, 1])[torch.arange(x.shape[0]) % 4]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=6)[0].flatten(1)


def last(kind: str, **options: Any) -> nn.Module:
    return gallery.Classifier(kind, **options)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: last("LSTM"),
    "GRU": lambda: last("GRU"),
    "RNN": lambda: last("RNN"),
    "LSTM without bias": lambda: last("LSTM", bias=False),
    "GRU without bias": lambda: last("GRU", bias=False),
    "LSTM projected": lambda: last("LSTM", proj_size=2),
    "LSTM twice, both ways": lambda: last("LSTM", num_layers=2, bidirectional=True),
    "GRU twice, both ways": lambda: last("GRU", num_layers=2, bidirectional=True),
    "LSTM packed": lambda: Packed("LSTM"),
    "GRU packed": lambda: Packed("GRU"),
}


def both(model: nn.Module, background: Tensor, x: Tensor, **options: Any) -> tuple[Any, Any]:
    plain, fast = (
        DeepExplainer(model, background, compiled=wanted).shap_values(x, **options)
        for wanted in (False, True)
    )
    return plain, fast


def assert_close(plain: Any, fast: Any, dtype: torch.dtype) -> None:
    assert np.abs(plain).max() > 1e-4
    np.testing.assert_allclose(fast, plain, rtol=0, atol=CLOSE[dtype] * np.abs(plain).max())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return calls_noted(monkeypatch, CompiledSteps)


@needs_compiler
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_equals_torch(name: str, dtype: torch.dtype, calls: list[int]) -> None:
    model = MODELS[name]().to(dtype)
    x, background = torch.randn(4, 6, 3, dtype=dtype), torch.randn(8, 6, 3, dtype=dtype)
    # Where a sample's length is not its reference's, the difference is not only that of their values.
    assert_close(*both(model, background, x, check_additivity=False), dtype)
    assert bool(calls) == (name != "RNN")


@needs_compiler
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("max_memory", [1, None])
def test_references_of_its_own_for_each_sample(kind: str, max_memory: int | None) -> None:
    model = last(kind).double()
    x, references = torch.randn(3, 6, 3).double(), torch.randn(3, 5, 6, 3).double()
    plain, fast = (
        DeepExplainer(model, references[0], compiled=wanted, max_memory=max_memory).shap_values(
            x, references=references
        )
        for wanted in (False, True)
    )
    assert_close(plain, fast, torch.float64)


@needs_compiler
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_threads_of_torch_change_nothing(kind: str) -> None:
    explainer = DeepExplainer(last(kind), torch.randn(40, 6, 3))
    assert_threads_change_nothing(partial(explainer.shap_values, torch.randn(4, 6, 3)))


@needs_compiler
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_long_sequence_whose_multipliers_fade(kind: str) -> None:
    # In float32 all multipliers of the first steps are below the smallest number.
    model = last(kind)
    x, background = torch.randn(2, 400, 3), torch.randn(4, 400, 3)
    plain, fast = both(model, background, x)
    assert_close(plain, fast, torch.float32)
    exact = DeepExplainer(model.double(), background.double(), compiled=False).shap_values(x.double())
    # Float32 against float64, through 400 steps forwards and back.
    np.testing.assert_allclose(fast, exact, rtol=0, atol=2e-5 * np.abs(exact).max())
    assert np.abs(exact[:, 0]).max() < 1e-30


DELTAS = [0.0, -0.0, 1e-45, 1e-38, -1e-30, 1e-8, 3e-4, -0.1, 0.34, 0.35, -0.7, 1.0, 5.0, -9.1, 20.0, 21.0]


def slopes(deltas: list[float], dtype: torch.dtype) -> Tensor:
    """Let the kernel compute tanh(delta) / delta: the slope of ``z`` of a GRU with all else one."""
    size = len(deltas)
    x = tuple(torch.zeros(1, 1, count * size, dtype=dtype) for count in (3, 3, 3, 2))
    x0 = tuple(each.clone() for each in x)
    x[0][..., size : 2 * size] = torch.tensor(deltas, dtype=dtype)
    x[2].add_(1)
    gates = torch.zeros(1, 1, 4, size, dtype=dtype)
    cell = compiled_cell("gru", gates, size)
    assert cell is not None
    d = torch.ones(1, 1, 1, size, dtype=dtype)
    swept = Swept(x, x0, lambda a, b: (a, b), 1, 1, 1, 1, 1)
    CompiledSteps(cell, swept, [d], gates)(0, 0)
    return gates[0, 0, 2]


@needs_compiler
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_slope_to_four_units_in_the_last_place(dtype: torch.dtype) -> None:
    exact = [math.tanh(each) / each if each else 1.0 for each in torch.tensor(DELTAS, dtype=dtype).tolist()]
    np.testing.assert_allclose(slopes(DELTAS, dtype).numpy(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)


@needs_compiler
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_slope_of_infinity_and_nan(dtype: torch.dtype) -> None:
    found = slopes([math.inf, -math.inf, math.nan] * 11, dtype).view(11, 3)
    assert (found[:, :2] == 0).all()
    assert found[:, 2].isnan().all()


@pytest.mark.parametrize("like", [torch.zeros(1).half(), torch.zeros(1, device="meta")], ids=str)
def test_for_single_and_double_precision_on_the_cpu_only(like: Tensor) -> None:
    assert compiled_cell("lstm", like, 4) is None
    assert compiled_cell("", torch.zeros(1), 4) is None
    assert compiled_cell("lstm", torch.zeros(1), 10**6) is None
