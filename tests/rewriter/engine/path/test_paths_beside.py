"""Paths of tokens, groups and several inputs, beside lengths, masks and what a model reads off its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError
from rewriter.engine.path.nearness import Nearer
from rewriter.engine.path.points import Path
from tests.rewriter.engine.test_decided import Last, Mean, Packed
from tests.rewriter.engine.test_tokens import Tagger, WithPositions
from tests.support.models import gallery
from tests.support.stock import assert_same
from tests.support.walked import by_permutations, walked

EXACT = 1e-11


def tokens(*rows: int, steps: int = 4) -> list[Tensor]:
    return [torch.randint(1, 9, (n, steps)) for n in rows]


@pytest.mark.parametrize("kind", [Tagger, WithPositions])
def test_tokens_are_switched_whole(kind: type[Tagger]) -> None:
    model = kind().double().eval()
    x, background = tokens(2, 3)
    explainer = DeepExplainer(model, background)
    got = explainer.shap_values(x, blocks=4, draws=2, seed=2)
    assert_same(got, by_permutations(model, x, background, Path(draws=2, seed=2)), EXACT)
    got = explainer.shap_values(x, blocks=2, draws=2, seed=2)
    assert_same(got, walked(model, x, background, Path(2, 1, 2, 2))[0], EXACT)


def test_there_is_nothing_between_two_tokens() -> None:
    x, background = tokens(2, 3)
    explainer = DeepExplainer(Tagger().double(), background)
    with pytest.raises(
        RewriteError, match=r"segments: there is nothing between two tokens, input 0; pass bl"
    ):
        explainer.shap_values(x, segments=2)


@pytest.mark.parametrize("kind", [Last, Packed, Mean])
def test_mixtures_are_read_as_the_sample(kind: type[Last]) -> None:
    """Also where samples and references have as many steps, but at other places: mixtures have others."""
    model = kind().double().eval()
    x, background = torch.tensor([[3, 5, 2, 0], [1, 7, 0, 0]]), torch.tensor([[4, 1, 6, 0], [2, 8, 0, 3]])
    explainer = DeepExplainer(model, background)
    change = (model(x) - model(background).mean(0)).detach().numpy()
    plain = explainer.shap_values(x)
    for asked in (Nearer(blocks=2), Nearer(blocks=4, draws=3)):
        values = explainer.shap_values(x, **asked)
        assert np.abs(values.sum(1) - change).max() < EXACT
        # What the padding reads is nothing, but for its part in what the lengths alone do.
        assert_same(values[0, 3], plain[0, 3], EXACT)
        own = background.expand(2, *background.shape)
        assert_same(explainer.shap_values(x, references=own, **asked), values, EXACT)


class Counts(nn.Module):
    """Divides by the number of numbers that are not zero, of which mixtures have another."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.gru(x)[0].sum(1)) / torch.count_nonzero(x[..., 0], 1)[:, None]
        return y


def test_a_number_that_samples_and_references_share_and_mixtures_do_not() -> None:
    x, background = (torch.randn(n, 4, 3, dtype=torch.float64) for n in (2, 3))
    x[:, :2, 0], background[:, 2:, 0] = 0, 0
    model = Counts().double().eval()
    explainer = DeepExplainer(model, background)
    change = (model(x) - model(background).mean(0)).detach().numpy()
    values = explainer.shap_values(x, blocks=3, draws=2)
    assert np.abs(values.sum((1, 2)) - change).max() < EXACT


class LengthsBeside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][torch.arange(len(x)), lengths - 1])
        return y


def test_lengths_are_no_players() -> None:
    model = LengthsBeside().double().eval()
    x, background = (torch.randn(n, 4, 3, dtype=torch.float64) for n in (3, 2))
    lengths, lengths0 = torch.tensor([4, 2, 3]), torch.tensor([3, 4])
    explainer = DeepExplainer(model, [background, lengths0])
    plain = explainer.shap_values([x, lengths])
    got = explainer.shap_values([x, lengths], blocks=2, segments=2, draws=2)
    assert_same(got[1], plain[1], EXACT)
    assert (got[0][1, 2:] == 0).all()
    for row in range(3):
        cut = of_length(model, int(lengths[row]))
        expected, _ = walked(cut, x[row : row + 1], background, Path(2, 2, 2))
        assert_same(got[0][row : row + 1], expected, EXACT)


def of_length(model: LengthsBeside, length: int) -> nn.Module:
    """Return a model that reads so many steps, whatever there are."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = model.rnn, model.head

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.rnn(x)[0][:, length - 1])
            return y

    return Fixed()


def test_groups_are_switched_together() -> None:
    model = gallery.Classifier("GRU").double().eval()
    x, background = (torch.randn(n, 4, 3, dtype=torch.float64) for n in (2, 2))
    explainer = DeepExplainer(model, background)
    steps, channels = np.arange(4)[:, None], torch.tensor([10, 10, -3])
    for groups, players in (
        (steps, torch.arange(4)[:, None].expand(4, 3)),
        (channels, torch.tensor([1, 1, 0]).expand(4, 3)),
    ):
        got = explainer.shap_values(x, blocks=2, draws=2, groups=groups)
        assert_same(got, walked(model, x, background, Path(2, 1, 2), players)[0], EXACT)
    # One group is switched at once.
    one = explainer.shap_values(x, blocks=5, draws=2, groups=np.zeros((), int))
    assert_same(one, explainer.shap_values(x), EXACT)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.LSTM(3, 4, batch_first=True), nn.Linear(2, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x)[0][:, -1] * torch.tanh(self.right(y))


def test_groups_may_have_elements_of_several_inputs() -> None:
    model = TwoInputs().double().eval()
    x, y, x0, y0 = (torch.randn(*s, dtype=torch.float64) for s in ((2, 4, 3), (2, 2), (1, 4, 3), (1, 2)))
    explainer = DeepExplainer(model, [x0, y0])
    groups = [np.ones(3, int), np.array([1, 2])]
    got = explainer.shap_values([x, y], blocks=2, groups=groups)
    with torch.no_grad():
        f, f0 = model(x, y), model(x0, y0)
        alone = model(x0, torch.stack([y0[0, 0].expand(2), y[:, 1]], 1))
        others = model(x, torch.stack([y[:, 0], y0[0, 1].expand(2)], 1))
    second = ((alone - f0) + (f - others)) / 2
    assert_same(got[1][:, 1], second.numpy(), EXACT)
    # None: each element by itself.
    with_none = explainer.shap_values([x, y], blocks=3, groups=[np.ones(3, int), None])
    by_numbers = explainer.shap_values([x, y], blocks=3, groups=[np.ones(3, int), np.array([5, 6])])
    assert_same(with_none, by_numbers, EXACT)
    assert len(explainer([x, y], blocks=2, draws=2, groups=groups).error_std[0]) == 14


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"blocks": 0}, "blocks: expected an integer, 1 or more, got 0"),
    ({"segments": 1.5}, "segments: expected an integer, 1 or more, got 1.5"),
    ({"draws": True}, "draws: expected an integer, 1 or more, got True"),
    ({"seed": -1}, "seed: expected an integer, 0 or more, got -1"),
    ({"draws": 3}, "draws: a single block has no order to draw"),
    ({"accuracy": "best"}, "accuracy: expected one of fast, near, nearest, got 'best'"),
    ({"accuracy": "near", "blocks": 2}, "accuracy: chooses blocks and draws"),
    ({"blocks": 2, "groups": np.arange(5)}, r"groups: expected what broadcasts to the shape \(4, 3\) of a r"),
    ({"blocks": 2, "groups": np.ones(3)}, "groups: expected integers, got float64"),
    ({"groups": np.arange(5)}, r"groups: expected what broadcasts to the shape \(4, 3\) of a r"),
    ({"blocks": 2, "groups": [[0], [1, 2]]}, "groups: expected an array of integers"),
    ({"accuracy": ["fast"]}, "accuracy: expected one of fast, near, nearest"),
    ({"cells": ["shapley"]}, "cells: expected one of deeplift, shapley"),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=str)
def test_what_is_no_path_is_refused(asked: dict[str, Any], message: str) -> None:
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(3, 4, 3))
    with pytest.raises(RewriteError, match=message):
        explainer.shap_values(torch.randn(2, 4, 3), **asked)


def test_an_option_that_there_is_not_is_named_with_those_that_there_are() -> None:
    explainer = DeepExplainer(gallery.Classifier(), torch.randn(3, 4, 3))
    with pytest.raises(TypeError, match="unexpected option block; there are blocks, segments, draws, seed"):
        explainer.shap_values(torch.randn(2, 4, 3), block=2)  # type: ignore[call-arg]


def test_groups_of_several_inputs_are_a_list() -> None:
    explainer = DeepExplainer(TwoInputs(), [torch.randn(1, 4, 3), torch.randn(1, 2)])
    with pytest.raises(RewriteError, match="groups: expected a list of 2, one per input, or None, got 1"):
        explainer.shap_values([torch.randn(1, 4, 3), torch.randn(1, 2)], blocks=2, groups=np.ones(3, int))


def test_a_stream_is_explained_along_paths_too() -> None:
    explainer = DeepExplainer(gallery.Classifier("GRU"), torch.randn(3, 4, 3))
    x = torch.randn(3, 4, 3)
    parts = list(explainer.stream(x.split(2), blocks=2, draws=2, seed=4))
    whole = explainer(x, blocks=2, draws=2, seed=4)
    for name in ("values", "error_std"):
        got = np.concatenate([getattr(each, name) for each in parts])
        np.testing.assert_allclose(got, getattr(whole, name), rtol=0, atol=1e-6)


def test_nothing_to_explain() -> None:
    explainer = DeepExplainer(gallery.Classifier("GRU"), torch.randn(3, 4, 3))
    assert explainer.shap_values(torch.randn(0, 4, 3), blocks=2, draws=2).shape == (0, 4, 3, 2)
