"""Paths come nearer to Shapley values, and standard errors say how near they are to their own limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer
from rewriter.engine.path.points import Path
from tests.support.models import gallery
from tests.support.oracles.shapley import shapley_of_subsets
from tests.support.walked import walked

SAMPLES, REFERENCES, STEPS = 4, 4, 2


def problem(kind: str, seed: int) -> tuple[nn.Module, Tensor, Tensor, np.ndarray]:
    """Return a saturated model, samples, references, and the exact Shapley values of its first output."""
    torch.manual_seed(seed)
    model = gallery.Classifier(kind).double().eval()
    for weight in model.rnn.parameters():
        weight.data *= 5
    x, references = (torch.randn(n, STEPS, 3, dtype=torch.float64) for n in (SAMPLES, REFERENCES))

    def first(flat: Tensor) -> Tensor:
        return model(flat.view(1, STEPS, 3))[0, 0]

    with torch.no_grad():
        exact = [
            torch.stack([shapley_of_subsets(first, each.flatten(), r.flatten()) for r in references]).mean(0)
            for each in x
        ]
    return model, x, references, torch.stack(exact).view_as(x).numpy()


def test_they_come_nearer() -> None:
    """As in docs/concepts/truth.md: blocks with draws on every model, all but segments alone on the whole."""
    paths = [Nearer(), Nearer(blocks=2), Nearer(blocks=2, draws=8), Nearer(blocks=4, draws=8)]
    paths += [Nearer(blocks=2, segments=2, draws=8), Nearer(blocks=6, draws=64)]
    found = []
    for kind, seed in (("LSTM", 0), ("LSTM", 1), ("GRU", 2), ("GRU", 3)):
        model, x, references, exact = problem(kind, seed)
        explainer = DeepExplainer(model, references)
        values = [explainer.shap_values(x, **asked)[..., 0] for asked in paths]
        found.append([np.abs(each - exact).sum() / np.abs(exact).sum() for each in values])
    ratios = np.exp(np.log(np.array(found)).mean(0))
    plain, blocks, several, more, both, permutations = ratios / ratios[0]
    assert plain == 1
    assert blocks < 0.9
    assert several < 0.7
    assert both < 0.7
    assert more < 0.5
    assert permutations < 0.2
    assert (np.array(found)[:, [2, 3, 5]] < np.array(found)[:, :1]).all()


def covered(explainer: DeepExplainer, x: Tensor, exact: np.ndarray, seeds: range, **asked: int) -> float:
    """Return how often exact values are within two standard errors."""
    inside = []
    for seed in seeds:
        found = explainer(x, seed=seed, **asked)  # type: ignore[arg-type]  # numbers alone
        inside.append(np.abs(found.values[..., 0] - exact) < 2 * found.error_std[..., 0])
    return float(np.mean(inside))


@pytest.mark.parametrize("draws", [4, 8])
def test_standard_errors_of_permutations_cover_shapley_values(draws: int) -> None:
    """95.4% within two of them were they known; they are estimated of few values that are not normal."""
    shares = []
    for seed in range(3):
        model, x, references, exact = problem("LSTM", seed)
        explainer = DeepExplainer(model, references)
        shares.append(covered(explainer, x, exact, range(15), blocks=6, draws=draws))
    assert {4: 0.86, 8: 0.9}[draws] < np.mean(shares) < 0.97


def test_standard_errors_of_blocks_cover_what_more_draws_converge_to() -> None:
    model, x, references, exact = problem("GRU", 4)
    explainer = DeepExplainer(model, references)
    limit = explainer.shap_values(x, blocks=2, draws=400, seed=10**6)[..., 0]
    share = covered(explainer, x, limit, range(20), blocks=2, draws=8)
    assert 0.88 < share < 0.985
    # The limit is not the Shapley value, and no standard error says so.
    assert covered(explainer, x, exact, range(5), blocks=2, draws=60) < 0.7


def test_they_are_made_of_the_differences_between_draws_of_a_reference() -> None:
    model, x, references, _ = problem("LSTM", 5)
    draws = 3
    values, by_draw = walked(model, x, references, Path(2, 1, draws, 7))
    variances = by_draw.var(0, ddof=1) / draws
    expected = np.sqrt(variances.sum(0)) / len(references)
    found = DeepExplainer(model, references)(x, blocks=2, draws=draws, seed=7)
    np.testing.assert_allclose(found.values, values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.error_std, expected, rtol=1e-6, atol=1e-12)
    assert DeepExplainer(model, references)(x, blocks=2).error_std is None
    one = DeepExplainer(model, references, output=lambda y: y[:, 0])(x, blocks=2, draws=draws, seed=7)
    assert one.error_std.shape == one.values.shape == x.shape
    np.testing.assert_allclose(one.error_std, expected[..., 0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("accuracy", ["fast", "near", "nearest"])
def test_presets_need_pairs_of_references_and_draws(accuracy: str) -> None:
    model, x, references, exact = problem("LSTM", 6)
    explainer = DeepExplainer(model, references)
    asked = {
        "fast": Nearer(blocks=2, draws=2),
        "near": Nearer(blocks=4, draws=8),
        "nearest": Nearer(blocks=4, draws=32),
    }[accuracy]
    got = explainer.shap_values(x, accuracy=accuracy)  # type: ignore[arg-type]  # one of the three
    np.testing.assert_array_equal(got, explainer.shap_values(x, **asked))
    assert np.abs(got[..., 0] - exact).sum() < np.abs(explainer.shap_values(x)[..., 0] - exact).sum()
