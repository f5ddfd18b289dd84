"""Attributions to tokens, against the embedded sequence explained by itself."""

from __future__ import annotations

import numpy as np
import pytest
import shap
import torch
from captum.attr import LayerDeepLift
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose

TOKENS, REFERENCES = 4, 7


class Layers(nn.Module):
    """Embedding, LSTM, head; takes what is embedded already."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def embedded(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tagger(Layers):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedded(self.embedding(tokens))


class Embedded(nn.Module):
    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, x: Tensor) -> Tensor:
        return self.tagger.embedded(x)


class WithPositions(Tagger):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(6, 4)

    def embedded(self, x: Tensor) -> Tensor:
        return super().embedded(x + self.positions(torch.arange(x.shape[1])))


class Paired(Tagger):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedded(self.embedding((tokens + tokens.roll(1, 1)) % 20))


@pytest.fixture
def model() -> Tagger:
    return Tagger().double()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 19, (TOKENS, 6))


@pytest.fixture
def background() -> Tensor:
    return torch.randint(0, 19, (REFERENCES, 6))


def outputs(model: nn.Module, inputs: list[Tensor]) -> np.ndarray:
    with torch.no_grad():
        return model(*inputs).numpy()


def difference(model: nn.Module, x: list[Tensor], background: list[Tensor]) -> np.ndarray:
    return outputs(model, x) - outputs(model, background).mean(0)


# float64 sums of a few hundred terms of size 1.
EXACT = 1e-13


def test_tokens_get_what_their_embedding_gets(model: Tagger, tokens: Tensor, background: Tensor) -> None:
    with torch.no_grad():
        x, references = model.embedding(tokens), model.embedding(background)
    expected = DeepExplainer(Embedded(model), references).shap_values(x).sum(2)
    got = DeepExplainer(model, background).shap_values(tokens)
    assert got.shape == (TOKENS, 6, 2)
    assert np.abs(got - expected).max() < EXACT
    assert np.abs(got.sum(1) - difference(model, [tokens], [background])).max() < EXACT


def test_the_output_of_an_embedding_can_be_explained(
    model: Tagger, tokens: Tensor, background: Tensor
) -> None:
    explainer = DeepExplainer((model, model.embedding), background)
    got = explainer.shap_values(tokens)
    assert got.shape == (TOKENS, 6, 4, 2)
    assert np.abs(got.sum((1, 2)) - difference(model, [tokens], [background])).max() < EXACT
    behind = DeepExplainer((model, model.lstm), background).shap_values(tokens)
    assert np.abs(got - behind).max() < EXACT


def test_stock_shap_takes_tokens(model: Tagger, tokens: Tensor, background: Tensor) -> None:
    decomposed = decompose(model)
    explainer = shap.DeepExplainer((decomposed, decomposed.embedding_output), background)
    got = explainer.shap_values(tokens)
    expected = DeepExplainer((model, model.embedding), background).shap_values(tokens)
    assert np.abs(got - expected).max() < EXACT
    assert explainer.explainer.data[0] is background
    assert not decomposed._forward_pre_hooks


def test_captum_takes_tokens(model: Tagger, tokens: Tensor, background: Tensor) -> None:
    decomposed = decompose(model)
    explainer = LayerDeepLift(decomposed, decomposed.embedding)
    got = explainer.attribute(tokens, background[:TOKENS], target=1).detach().numpy()
    expected = outputs(model, [tokens])[:, 1] - outputs(model, [background[:TOKENS]])[:, 1]
    assert np.abs(got.sum((1, 2)) - expected).max() < EXACT


def test_positions_are_no_tokens(tokens: Tensor, background: Tensor) -> None:
    model = WithPositions().double()
    got = DeepExplainer(model, background).shap_values(tokens)
    assert np.abs(got.sum(1) - difference(model, [tokens], [background])).max() < EXACT


def test_same_token_as_all_references_gets_nothing(model: Tagger, tokens: Tensor) -> None:
    background = tokens[:1].repeat(REFERENCES, 1)
    background[:, 3] = torch.arange(REFERENCES)
    got = DeepExplainer(model, background).shap_values(tokens[:1])
    assert not got[0, [0, 1, 2, 4, 5]].any()
    assert got[0, 3].any()


def test_explanation_has_one_feature_per_token(model: Tagger, tokens: Tensor, background: Tensor) -> None:
    explanation = DeepExplainer(model, background)(tokens)
    assert explanation.shape == (TOKENS, 6, 2)
    assert np.array_equal(explanation.data, tokens.numpy())


def test_tokens_that_the_model_computes_are_refused(tokens: Tensor, background: Tensor) -> None:
    model = Paired().double()
    with pytest.raises(RewriteError, match=r"embedding: looks up integers of shape \(4, 6\) that the model"):
        DeepExplainer(model, background).shap_values(tokens)
    got = DeepExplainer((model, model.embedding), background).shap_values(tokens)
    assert np.abs(got.sum((1, 2)) - difference(model, [tokens], [background])).max() < EXACT


def test_integers_without_an_embedding_are_refused() -> None:
    with pytest.raises(RewriteError, match=r"integers have no attributions, unless an nn\.Embedding"):
        DeepExplainer(nn.Flatten(), torch.ones(2, 3).long())


class Looked(nn.Module):
    """What is looked up is transformed by functions that need rules."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cell = nn.Embedding(9, 4), nn.GRUCell(4, 4)

    def transformed(self, tokens: Tensor) -> Tensor:
        found = self.embedding(tokens)
        h = self.cell(found[:, 0], found[:, 1])
        return h * torch.exp(torch.relu(found[:, 2]))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformed(tokens)


class LookedInCode(Looked):
    """The same in code that torch.fx cannot follow."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformed(tokens) if tokens.sum() < 1000 else tokens


def test_tokens_in_code_have_the_values_that_they_have_in_a_graph() -> None:
    graph = Looked().double()
    code = LookedInCode().double()
    code.load_state_dict(graph.state_dict())
    assert decompose(code).report.islands
    assert not decompose(graph).report.islands
    tokens, background = torch.randint(9, (3, 3)), torch.randint(9, (4, 3))
    got, expected = (DeepExplainer(each, background).shap_values(tokens) for each in (code, graph))
    # The same rules on the same numbers; sums may be in another order.
    assert np.abs(got - expected).max() < 1e-13


class RenormsLooked(Looked):
    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.sum() > 1000:
            return tokens
        return torch.stack([self.embedding(each.clamp(min=0)) for each in tokens.unbind(1)], 1).renorm(
            2, 0, 0.1
        )


def test_what_no_rule_covers_is_found_behind_tokens() -> None:
    found = decompose(RenormsLooked(), torch.randint(9, (2, 3))).report.uncovered
    assert [each.operation for each in found] == ["bool", "renorm"]


class Pair(Layers):
    """Reads two sequences, of which only the second has an influence."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.embedded(self.embedding(input=second)) + 0 * self.embedded(self.embedding(first))


class Cast(Pair):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return super().forward(first.clone(), second.clone())


class Reversed(Tagger):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedded(self.embedding(tokens.flip(1)))


@pytest.mark.parametrize("kind", [Pair, Cast])
def test_inputs_with_the_same_tokens_are_told_apart(
    kind: type[Pair], tokens: Tensor, background: Tensor
) -> None:
    """Only the second input has an influence."""
    model = kind().double()
    expected = DeepExplainer(model, [background.flip(0), background]).shap_values([tokens.flip(0), tokens])[1]
    first, second = DeepExplainer(model, [background.flip(0), background]).shap_values(
        [tokens, tokens.clone()]
    )
    assert not first.any()
    assert np.abs(second - expected).max() < EXACT
    difference_ = difference(model, [tokens, tokens], [background, background])
    assert np.abs(second.sum(1) - difference_).max() < EXACT


def test_the_very_same_input_twice_is_told_apart(tokens: Tensor, background: Tensor) -> None:
    model = Cast().double()
    first, second = DeepExplainer(model, [background, background]).shap_values([tokens, tokens])
    assert not first.any()
    difference_ = difference(model, [tokens, tokens], [background, background])
    assert np.abs(second.sum(1) - difference_).max() < EXACT


def test_a_sequence_that_is_its_own_reversal_is_reversed(
    model: Tagger, tokens: Tensor, background: Tensor
) -> None:
    tokens = torch.cat([tokens[:, :3], tokens[:, :3].flip(1)], 1)
    same = Reversed().double()
    same.load_state_dict(model.state_dict())
    expected = DeepExplainer(model, background.flip(1)).shap_values(tokens)
    assert np.abs(DeepExplainer(same, background).shap_values(tokens) - expected[:, ::-1]).max() < EXACT


class ByKeyword(Tagger):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(input=self.lstm(input=self.embedding(input=tokens))[0][:, -1])


@pytest.mark.parametrize("layer", ["embedding", "head"])
def test_layers_may_be_called_by_keyword(
    layer: str, model: Tagger, tokens: Tensor, background: Tensor
) -> None:
    same = ByKeyword().double()
    same.load_state_dict(model.state_dict())
    expected = DeepExplainer((model, getattr(model, layer)), background).shap_values(tokens)
    got = DeepExplainer((same, getattr(same, layer)), background).shap_values(tokens)
    assert np.abs(got - expected).max() < EXACT
    got = DeepExplainer(same, background).shap_values(tokens)
    assert np.abs(got - DeepExplainer(model, background).shap_values(tokens)).max() < EXACT


def test_an_embedding_that_bounds_its_norms_is_not_written_to(tokens: Tensor, background: Tensor) -> None:
    """Torch writes rows of smaller norm into the weights whenever they are looked up."""
    model = Tagger().double()
    model.embedding = nn.Embedding(20, 4, max_norm=1.0).double()
    before = model.embedding.weight.detach().clone()
    got = DeepExplainer(model, background).shap_values(tokens)
    assert torch.equal(model.embedding.weight, before)
    expected = difference(model, [tokens], [background])
    assert not torch.equal(model.embedding.weight, before)
    assert np.abs(got.sum(1) - expected).max() < EXACT
    # torch has bounded the norms by now.
    model.embedding.max_norm = None
    assert np.abs(got - DeepExplainer(model, background).shap_values(tokens)).max() < EXACT
