"""Attributions along paths, against paths that are walked switch by switch, and their limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from rewriter.engine import attribution
from rewriter.engine.attribution import Size
from rewriter.engine.merged_batch import Layouts
from rewriter.engine.path import along
from rewriter.engine.path.nearness import Nearer
from rewriter.engine.path.points import Path
from rewriter.engine.path.tiles import PathTiles
from rewriter.engine.problem import Problem
from tests.rewriter.engine.test_rows_in_code import RowByRow
from tests.support.models import gallery
from tests.support.models.recurrent_models import TimeFirst
from tests.support.stock import assert_same
from tests.support.walked import by_permutations, walked
from tests.support.watching import tapes_noted

# Sums of float64 numbers in another order.
EXACT = 1e-11


class Attends(nn.Module):
    """A transformer's layer over steps that are merged with the batch before it."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        merged = torch.relu(self.into(x.flatten(0, 1)))
        y: Tensor = self.head(self.layer(merged.view(*x.shape[:2], 8)).mean(1))
        return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: gallery.Classifier("LSTM", num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: gallery.Classifier("GRU"),
    "RNN": lambda: gallery.Classifier("RNN"),
    "time first": lambda: TimeFirst(),
    "control flow": gallery.ValueControlFlow,
    "loop over rows": lambda: nn.Sequential(nn.Linear(3, 4), RowByRow("GRU")),
    "attention": Attends,
}
PATHS = [(1, 3, 1), (2, 1, 2), (2, 2, 1)]


def data(*rows: int, steps: int = 4) -> list[Tensor]:
    return [torch.randn(n, steps, 3, dtype=torch.float64) for n in rows]


@pytest.mark.parametrize("case", MODELS)
def test_each_switch_is_deeplifts(case: str) -> None:
    model = MODELS[case]().double().eval()
    x, background = data(2, 2, steps=2)
    explainer = DeepExplainer(model, background)
    for blocks, segments, draws in PATHS:
        got = explainer.shap_values(x, blocks=blocks, segments=segments, draws=draws, seed=3)
        expected, _ = walked(model, x, background, Path(blocks, segments, draws, 3))
        assert_same(got, expected, EXACT)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_neither_tiles_nor_the_number_of_samples_change_anything(kind: str, compiled: bool) -> None:
    model = gallery.Classifier(kind).double().eval()
    x, background = data(2, 3, steps=2)
    asked = Nearer(blocks=2, draws=2, segments=2, seed=1)
    expected = DeepExplainer(model, background).shap_values(x, **asked)
    # One point at a time.
    tight = DeepExplainer(model, background, max_memory=1, compiled=compiled)
    assert_same(tight.shap_values(x, **asked), expected, EXACT)
    explainer = DeepExplainer(model, background, max_memory=30_000, compiled=compiled)
    assert_same(explainer.shap_values(x[1:], **asked), expected[1:], EXACT)
    own = background.expand(2, *background.shape)
    assert_same(explainer.shap_values(x, references=own, **asked), expected, EXACT)
    asked["seed"] = 2
    assert np.abs(explainer.shap_values(x, **asked) - expected).max() > 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("budget", [1, 10**5, 10**7])
def test_tiles_fit_into_the_memory(budget: int) -> None:
    problem = Problem([torch.zeros(9, 5)], [torch.zeros(7, 5)], torch.zeros(9, 3).int())
    for blocks, segments, draws in product((1, 2, 8), (1, 2, 5), (1, 6)):
        path = Path(blocks, segments, draws if blocks > 1 else 1)
        tiles = PathTiles.choose(problem, path, Size(10_000, 100, Layouts()), budget)
        rows = tiles.samples * tiles.references * tiles.draws * path.directions * tiles.points
        # Points of both kinds, the odd ones twice, and what comes back; one of each is the least.
        least = rows == path.directions and tiles.outputs == 1
        assert rows * 10_000 * (3 + tiles.outputs) < budget or least
        assert min(tiles.samples, tiles.references, tiles.draws, tiles.points, tiles.outputs) >= 1
    assert budget < 10**7 or rows > 50


def test_what_a_tile_left_is_gone_before_another_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise twice the memory that was planned with would be needed."""
    x, background = data(4, 3)
    record, tapes = tapes_noted(attribution.record)
    monkeypatch.setattr(along, "record", record)
    explainer = DeepExplainer(gallery.Classifier().double(), background, max_memory=1)
    explainer.shap_values(x, blocks=2, segments=2)
    assert len(tapes) == 24


def test_references_of_each_sample() -> None:
    model = gallery.Classifier("LSTM").double().eval()
    (x,), references = data(3), torch.randn(3, 2, 4, 3, dtype=torch.float64)
    got = DeepExplainer(model, references[0]).shap_values(x, references=references, blocks=2, segments=2)
    for row in range(3):
        expected, _ = walked(model, x[row : row + 1], references[row], Path(2, 2))
        assert_same(got[row : row + 1], expected, EXACT)


@pytest.mark.parametrize("case", ["LSTM", "attention"])
def test_as_many_blocks_as_inputs_are_antithetic_permutations(case: str) -> None:
    model = MODELS[case]().double().eval()
    x, background = data(2, 3, steps=3)
    explainer = DeepExplainer(model, background)
    for blocks in (9, 1000):
        got = explainer.shap_values(x, blocks=blocks, draws=2, seed=5)
        assert_same(got, by_permutations(model, x, background, Path(draws=2, seed=5)), EXACT)


def test_segments_converge_to_integrated_gradients() -> None:
    """Gauss-Legendre nodes in the place of equal pieces; the error falls with the square of their number."""
    model = gallery.Classifier("LSTM").double().eval()
    x, background = data(2, 3)
    explainer = DeepExplainer(model, background)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    expected = np.zeros((*x.shape, 2))
    for reference in background:
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = (reference + node * (x - reference)).requires_grad_()
            for k in range(2):
                (gradient,) = torch.autograd.grad(model(point)[:, k].sum(), point)
                expected[..., k] += weight * (gradient * (x - reference)).numpy() / len(background)
    errors = [np.abs(explainer.shap_values(x, segments=k) - expected).max() for k in (1, 4, 16, 64)]
    assert errors[-1] < 1e-4 * np.abs(expected).max()
    # Sixteen times nearer with four times as many, but for terms of higher order.
    assert all(after < before / 10 for before, after in pairwise(errors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_combination_is_additive(dtype: torch.dtype) -> None:
    model = nn.Sequential(gallery.Widened("GRU"), nn.Tanh()).to(dtype).eval()
    for weight in model[0].rnn.parameters():
        weight.data *= 4
    x, background = (torch.randn(n, 5, 6, dtype=dtype) for n in (4, 3))
    explainer = DeepExplainer(model, background)
    change = (model(x) - model(background).mean(0)).detach().numpy()
    # The promise of docs/concepts/exactness.md, of outputs between -1 and 1.
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-11}[dtype]
    for blocks, segments, draws in [(1, 7, 1), (2, 1, 1), (2, 3, 2), (5, 1, 1), (30, 1, 2)]:
        values = explainer.shap_values(x, blocks=blocks, segments=segments, draws=draws)
        assert np.abs(values.sum((1, 2)) - change).max() < tolerance


def test_multipliers_make_the_attributions_of_one_reference() -> None:
    model = gallery.Classifier("LSTM").double().eval()
    x, background = data(4, 1)
    explainer = DeepExplainer(model, background)
    for asked in (Nearer(segments=3), Nearer(blocks=2, draws=2), Nearer(blocks=3, segments=2)):
        made = explainer.multipliers(x, **asked) * (x - background)[..., None].numpy()
        assert_same(made, explainer.shap_values(x, **asked), EXACT)


def test_the_default_is_a_path_of_one_switch() -> None:
    model = gallery.Classifier("LSTM").eval()
    x, background = torch.randn(4, 5, 3), torch.randn(6, 5, 3)
    explainer = DeepExplainer(model, background)
    asked = explainer.shap_values(x, blocks=1, segments=1, draws=1, seed=9, groups=None)
    np.testing.assert_array_equal(asked, explainer.shap_values(x))
