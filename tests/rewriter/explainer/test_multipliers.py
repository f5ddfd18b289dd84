"""Multipliers equal captum's, and references may be a function of the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import DeepLift, DeepLiftShap, LayerDeepLiftShap
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose
from rewriter.explainer.additivity import AdditivityError
from tests.support.models import gallery
from tests.support.models.recurrent_models import CellState
from tests.support.stock import assert_same, stock

# captum says of every model that its hooks are being set, and of torch that they are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already:UserWarning"),
]
# The same sums of float64 in another order.
EXACT = 1e-11
MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: gallery.Classifier("LSTM", num_layers=2, bidirectional=True, proj_size=2),
    "GRU": lambda: gallery.Classifier("GRU"),
    "cell in a loop": gallery.ReadsLength,
    "control flow": gallery.ValueControlFlow,
    "norm": lambda: nn.Sequential(nn.Linear(3, 6), gallery.Widened("GRU")),
}


def data(*rows: int) -> list[Tensor]:
    return [torch.randn(n, 5, 3, dtype=torch.float64) for n in rows]


@pytest.mark.parametrize("case", MODELS)
def test_they_are_captums_without_multiplication_by_inputs(case: str) -> None:
    model = MODELS[case]().double().eval()
    x, background = data(3, 4)
    explainer, rewritten = DeepExplainer(model, background), decompose(model)
    got, values = explainer.multipliers(x), explainer.shap_values(x)
    assert got.shape == values.shape
    for target in range(got.shape[-1]):
        theirs = DeepLiftShap(rewritten, multiply_by_inputs=False).attribute(x, background, target=target)
        assert_same(got[..., target], theirs.detach().numpy(), EXACT)
        theirs = DeepLift(rewritten, multiply_by_inputs=False).attribute(x, background[:1], target=target)
        single = DeepExplainer(model, background[:1]).multipliers(x)
        assert_same(single[..., target], theirs.detach().numpy(), EXACT)


@pytest.mark.parametrize("case", MODELS)
def test_each_pair_is_explained_by_its_multipliers(case: str) -> None:
    """By brute force: one sample by one reference, and the mean over all of them."""
    model = MODELS[case]().double().eval()
    x, background = data(3, 4)
    explainer = DeepExplainer(model, background)
    pairs = np.zeros((3, 4, 5, 3, 2))
    for i, j in np.ndindex(3, 4):
        single = DeepExplainer(model, background[j : j + 1])
        pairs[i, j] = single.multipliers(x[i : i + 1])[0]
        delta = (x[i] - background[j]).numpy()[..., None]
        with torch.no_grad():
            change = (model(x[i : i + 1]) - model(background[j : j + 1]))[0].numpy()
        np.testing.assert_allclose((pairs[i, j] * delta).sum((0, 1)), change, rtol=0, atol=EXACT)
    assert_same(explainer.multipliers(x), pairs.mean(1), EXACT)
    deltas = (x[:, None] - background[None]).numpy()[..., None]
    assert_same(explainer.shap_values(x), (pairs * deltas).mean(1), EXACT)


def test_they_are_finite_where_sample_and_reference_are_one() -> None:
    model = gallery.Classifier().double()
    (x,) = data(2)
    got = DeepExplainer(model, x[:1]).multipliers(x[:1])
    leaf = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[0, 1], leaf)
    # The chord of no length is the tangent.
    assert_same(got[..., 1], gradient.numpy(), EXACT)


def test_shapes_are_those_of_values() -> None:
    model = CellState("LSTMCell").double()
    x, background = ([torch.randn(n, k, dtype=torch.float64) for k in (3, 2, 2)] for n in (2, 5))
    explainer = DeepExplainer(model, background)
    got, values = explainer.multipliers(x), explainer.shap_values(x)
    assert [each.shape for each in got] == [each.shape for each in values]
    ranked, order = explainer.multipliers(x, 1)
    for row in range(2):
        assert_same(ranked[0][row, ..., 0], got[0][row, ..., int(order[row, 0])], EXACT)
    assert DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3)).multipliers(
        torch.empty(0, 5, 3)
    ).shape == (
        *(0, 5, 3),
        2,
    )


def test_tiles_do_not_change_them() -> None:
    model = gallery.Classifier("GRU").double()
    x, background = data(7, 9)
    expected = DeepExplainer(model, background).multipliers(x)
    assert_same(DeepExplainer(model, background, max_memory=1).multipliers(x), expected, EXACT)
    own = background.expand(7, *background.shape)
    assert_same(DeepExplainer(model, background).multipliers(x, references=own), expected, EXACT)


def test_of_a_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 6), gallery.Widened("GRU")).double().eval()
    x, background = data(3, 4)
    rewritten = decompose(model)
    got = DeepExplainer((model, model.get_submodule("1.norm")), background).multipliers(x)
    layer = LayerDeepLiftShap(rewritten, rewritten.get_submodule("1.norm"), multiply_by_inputs=False)
    theirs = layer.attribute(x, background, target=1, attribute_to_layer_input=True)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_same(got[..., 1], theirs.detach().numpy(), EXACT)
    tokens, others = torch.randint(9, (3, 5)), torch.randint(9, (4, 5))
    reader = nn.Sequential(nn.Embedding(9, 3), gallery.Classifier("GRU")).double().eval()
    with pytest.raises(RewriteError, match=r"integers have no multipliers; explain \(model, embedding\)"):
        DeepExplainer(reader, others).multipliers(tokens)
    inner = DeepExplainer(reader[1], reader[0](others).detach()).multipliers(reader[0](tokens).detach())
    assert_same(DeepExplainer((reader, reader[0]), others).multipliers(tokens), inner, EXACT)


class Masked(nn.Module):
    """A mean over the steps that a mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kept = torch.tanh(self.inner(x)) * mask.unsqueeze(-1)
        return self.head(kept.sum(1) / mask.sum(1, keepdim=True))


def test_references_are_read_in_the_context_of_the_sample() -> None:
    model = Masked().double()
    x, background = data(2, 3)
    mask, mask0 = torch.arange(5) < torch.tensor([[3], [5]]), torch.ones(3, 5, dtype=torch.bool)
    found, none = DeepExplainer(model, [background, mask0]).multipliers([x, mask])
    assert not none.any()
    assert not found[0, 3:].any()
    for row in range(2):
        here = mask[row : row + 1].expand(3, 5)
        expected = DeepExplainer(model, [background, here]).multipliers([x[row : row + 1], here[:1]])[0]
        assert_same(found[row : row + 1], expected, EXACT)


class Rounds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).mode(1, keepdim=True)[0].expand(-1, 2)


def test_what_has_no_rule_is_named() -> None:
    x, background = data(2, 3)
    explainer = DeepExplainer(Rounds(), background)
    with pytest.raises(AdditivityError, match="mode"):
        explainer.multipliers(x)
    assert explainer.multipliers(x, check_additivity=False).shape == (2, 5, 3, 2)


class TestReferencesOfTheSamples:
    def shuffled(self, x: Tensor) -> Tensor:
        """Return each sample with its steps in three other orders."""
        return torch.stack([x.roll(k, 1) for k in (1, 2, 3)], 1)

    def test_they_are_those_that_the_function_makes(self) -> None:
        model = gallery.Classifier("LSTM").double()
        x, background = data(4, 2)
        explainer = DeepExplainer(model, background)
        got = explainer.shap_values(x, references=self.shuffled)
        for row in range(4):
            references = self.shuffled(x[row : row + 1])[0]
            expected = stock(model, references, x[row : row + 1])
            assert_same(got[row : row + 1], expected, EXACT)
        shown = explainer(x, references=self.shuffled)
        assert_same(shown.values, got, EXACT)
        with torch.no_grad():
            means = model(self.shuffled(x).flatten(0, 1)).unflatten(0, (4, 3)).mean(1)
        np.testing.assert_allclose(shown.base_values, means.numpy(), rtol=0, atol=EXACT)
        parts = list(explainer.stream(x.split(3), references=self.shuffled))
        assert_same(np.concatenate([part.values for part in parts]), got, EXACT)
        assert_same(
            explainer.multipliers(x, references=self.shuffled),
            explainer.multipliers(x, references=self.shuffled(x)),
            EXACT,
        )

    def test_several_inputs_are_a_list_and_arrays_are_taken(self) -> None:
        model = CellState("GRUCell").double()
        x, background = ([torch.randn(n, k, dtype=torch.float64) for k in (3, 2)] for n in (2, 5))

        def zeros(inputs: list[Tensor]) -> list[Any]:
            for each in inputs:
                # What it writes to is its own.
                each.zero_()
            return [each.unsqueeze(1).numpy() for each in inputs]

        before = [each.clone() for each in x]
        explainer = DeepExplainer(model, background)
        got = explainer.shap_values(x, references=zeros)
        assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))
        expected = stock(model, [torch.zeros_like(each[:1]) for each in x], x)
        assert_same(got, expected, EXACT)

    def test_what_it_returns_is_checked(self) -> None:
        explainer = DeepExplainer(gallery.Classifier(), torch.randn(2, 5, 3))
        x = torch.randn(4, 5, 3)
        for wrong, message in {
            "one for all": (lambda x: x[:2].unsqueeze(1), r"expected \(4, references, ...\)"),
            "no references": (lambda x: x.flip(1), "expected rows of shape"),
            "none": (lambda x: x.new_empty(4, 0, 5, 3), r"expected \(4, references, ...\)"),
        }.values():
            with pytest.raises(RewriteError, match=message):
                explainer.shap_values(x, references=wrong)
