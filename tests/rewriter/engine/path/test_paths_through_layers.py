"""Paths of what a layer takes, or gives: as of what is behind it, explained by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError
from rewriter.engine.path.nearness import Nearer
from tests.support.models.layers import (
    LAYERS,
    Apart,
    Copy,
    Crossed,
    Head,
    Merged,
    Residual,
    Rest,
    call_of,
    inputs,
    model_with,
)
from tests.support.stock import assert_same

# Both in float64, by the same steps in another order.
EXACT = 1e-11
ASKED = Nearer(blocks=2, segments=2, draws=2, seed=4)


def explained(model: Any, background: Any, x: Any, **asked: Any) -> Any:
    return DeepExplainer(model, background, progress=False).shap_values(x, **asked)


@pytest.mark.parametrize(
    ("kind", "branches"),
    [("LSTM", True), ("LSTM, time first", False), ("LayerNorm", False), ("the user's code", False)],
)
def test_input_of_a_layer(kind: str, branches: bool) -> None:
    layer = LAYERS[kind]()
    model, (x, background) = model_with(layer, branches=branches), inputs()
    given = [model[0](each).detach() for each in (background, x)]
    got = DeepExplainer((model, layer), background)
    behind = DeepExplainer(nn.Sequential(Copy(), model[1]), given[0])
    values = got.shap_values(x, **ASKED)
    assert_same(values, behind.shap_values(given[1], **ASKED), EXACT)
    # Where elements take part in what comes behind by themselves, no order counts.
    assert (np.abs(values - got.shap_values(x)).max() > 1e-6) == (kind != "the user's code")
    assert_same(got.multipliers(x, **ASKED), behind.multipliers(given[1], **ASKED), EXACT)
    assert_same(got(x, **ASKED).error_std, behind(given[1], **ASKED).error_std, EXACT)
    references = background.expand(3, *background.shape)
    assert_same(got.shap_values(x, references=references, **ASKED), values, EXACT)
    groups = np.arange(5)[:, None]
    by_steps = behind.shap_values(given[1], blocks=5, groups=groups)
    assert_same(got.shap_values(x, blocks=5, groups=groups), by_steps, EXACT)


def test_output_of_a_layer() -> None:
    layer = LAYERS["MultiheadAttention"]()
    model, (x, background) = model_with(layer), inputs()
    explainer = DeepExplainer((model, layer), background, attribute_to_layer_input=False)
    given = [call_of(layer)(layer, model[0](each)).detach() for each in (background, x)]
    assert_same(explainer.shap_values(x, **ASKED), explained(Head(model[1]), *given, **ASKED), EXACT)


@pytest.mark.parametrize("kind", ["LayerNorm", "the user's code"])
def test_what_goes_around_a_layer_is_one_player(kind: str) -> None:
    model = Residual(LAYERS[kind]()).double().eval()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    h, h0 = model.first(x).detach(), model.first(background).detach()
    groups = [np.arange(4), np.array(4)]
    expected = explained(Apart(model), [h0, h0], [h, h], groups=groups, **ASKED)[0]
    assert_same(explained((model, model.layer), background, x, **ASKED), expected, EXACT)


@pytest.mark.parametrize("time_first", [False, True])
def test_a_layer_whose_batch_is_merged_with_time(time_first: bool) -> None:
    model, (x, background) = Merged(time_first=time_first).double(), inputs()
    expected = explained(model, background, x, **ASKED)
    assert_same(explained((model, model.layer), background, x, **ASKED), expected, EXACT)


def test_a_layer_that_takes_several_tensors() -> None:
    model, rest, (x, background) = Crossed().double().eval(), Rest().double().eval(), inputs()
    rest.load_state_dict(model.state_dict())

    def taken(x: Tensor) -> list[Tensor]:
        return [model.first(x).detach(), model.second(x).flip(1).detach()]

    together = Nearer(blocks=3, segments=2, groups=[np.arange(5)[:, None]] * 2)
    got = explained((model, model.layer), background, x, **together)
    for each, expected in zip(got, explained(rest, taken(background), taken(x), **together), strict=True):
        assert_same(each, expected, EXACT)


class Tagged(nn.Module):
    """Tokens, read twice, and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 3), nn.Embedding(9, 3)
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        y = self.rnn(self.words(tokens) * self.kinds(tokens).sigmoid())[0]
        return self.head(y[torch.arange(len(tokens)), lengths - 1])


def test_an_embedding_beside_another_and_lengths() -> None:
    """The rest, by tokens that are looked up elsewhere, counts in the sums, which are checked."""
    model = Tagged().double().eval()
    x, background = (torch.randint(9, (n, 5)) for n in (3, 4))
    lengths, lengths0 = torch.tensor([5, 3, 3]), torch.tensor([4, 5, 2, 5])
    explainer = DeepExplainer((model, model.words), [background, lengths0])
    got = explainer.shap_values([x, lengths], **ASKED)
    assert got.shape == (3, 5, 3, 2)
    assert (got[1:, 3:] == 0).all()
    assert np.abs(got - explainer.shap_values([x, lengths])).max() > 1e-6


def test_rows_and_groups_that_do_not_fit() -> None:
    layer, (x, background) = LAYERS["LSTM"](), inputs()
    explainer = DeepExplainer((model_with(layer), layer), background)
    assert explainer.shap_values(x[:0], **ASKED).shape == (0, 5, 4, 2)
    with pytest.raises(RewriteError, match=r"groups: expected what broadcasts to the shape \(5, 4\) of a r"):
        explainer.shap_values(x, blocks=2, groups=np.arange(3))
