"""Whole models of many kinds: the rewrite changes nothing, and attributions add up with every explainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from captum.attr import DeepLift

import rewriter

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NAMES = [
    "LSTM + additive attention",
    "LSTM + self-attention",
    "CNN-LSTM",
    "LSTM-FCN",
    "sequence to sequence",
    "temporal fusion gating",
    "encoder-decoder GRU",
    "bidirectional, max over time",
    "embedding + packed LSTM",
    "residual LSTM, LayerNorm",
    "convolution + GRU, audio",
    "hierarchical attention",
    "siamese",
    "policy and value",
    "probabilistic forecaster",
    "transformer over LSTM",
    "time first",
    "GRU with decay",
    "ConvLSTM",
    "gated convolution",
]
# Relative to the largest output, or 1: what users are promised of whole models.
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import whole_model  # type: ignore[import-not-found]

    yield whole_model
    for name in [each for each in sys.modules if each.split(".")[0] in ("whole_model", "problems", "timing")]:
        del sys.modules[name]


def test_every_model_of_the_gallery_is_tested(gallery: ModuleType) -> None:
    assert list(gallery.CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_rewrite_changes_nothing(gallery: ModuleType, name: str) -> None:
    problem = gallery.Problem(gallery.CASES[name], torch.float32)
    # Outputs and gradients, in float32 and float64.
    rewriter.assert_equivalent(problem.model, rewriter.decompose(problem.model), tuple(problem.x))


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_our_attributions_add_up(gallery: ModuleType, name: str, dtype: torch.dtype) -> None:
    problem = gallery.Problem(gallery.CASES[name], dtype)
    assert problem.error(problem.ours) < EXACT[dtype]


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_stock_attributions_add_up(gallery: ModuleType, name: str, dtype: torch.dtype) -> None:
    problem = gallery.Problem(gallery.CASES[name], dtype)
    decomposed = rewriter.decompose(problem.model)
    assert problem.error(lambda: problem.stock(decomposed)) < EXACT[dtype]


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "embedding + packed LSTM"])
def test_captum_attributions_add_up(gallery: ModuleType, name: str) -> None:
    problem = gallery.Problem(gallery.CASES[name], torch.float64)
    x, x0 = (tuple(each[:3].requires_grad_() for each in rows) for rows in (problem.x, problem.background))
    explainer = DeepLift(rewriter.decompose(problem.model))
    _, delta = explainer.attribute(x, x0, target=1, return_convergence_delta=True)
    assert delta.abs().max() < EXACT[torch.float64]
