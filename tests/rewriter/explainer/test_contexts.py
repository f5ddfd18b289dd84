"""Sequences of different length: lengths and masks per sample and per reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rewriter import DeepExplainer

STEPS, SAMPLES, REFERENCES = 6, 4, 5
LENGTHS, LENGTHS0 = torch.tensor([6, 3, 4, 1]), torch.tensor([6, 2, 4, 3, 5])
# float64 sums of a few hundred terms of size 1.
EXACT = 1e-13


class Packed(nn.Module):
    """Mean of an LSTM's outputs over the steps that are there."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(out.sum(1) / lengths.unsqueeze(1)).tanh()


class LastStep(nn.Module):
    """The output at the last step that is there."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        return self.head(out[torch.arange(len(x)), lengths - 1])


class Masked(nn.Module):
    """Attention over the steps that a boolean mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.score, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        weights = self.score(out).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(1)
        return self.head((weights.unsqueeze(-1) * out).sum(1))


def as_mask(lengths: Tensor) -> Tensor:
    return torch.arange(STEPS) < lengths[:, None]


CASES = [
    (Packed, LENGTHS, LENGTHS0),
    (lambda: Packed("GRU"), LENGTHS, LENGTHS0),
    (LastStep, LENGTHS, LENGTHS0),
    (Masked, as_mask(LENGTHS), as_mask(LENGTHS0)),
]


@pytest.fixture(params=range(len(CASES)))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    build, context, context0 = CASES[request.param]
    x, x0 = (torch.randn(n, STEPS, 3, dtype=torch.float64) for n in (SAMPLES, REFERENCES))
    return build().double(), [x, context], [x0, context0]


def outputs(model: nn.Module, inputs: list[Tensor]) -> np.ndarray:
    with torch.no_grad():
        return model(*inputs).numpy()


def test_attributions_of_values_and_contexts_add_up(
    case: tuple[nn.Module, list[Tensor], list[Tensor]],
) -> None:
    model, x, x0 = case
    explainer = DeepExplainer(model, x0)
    values, effect = explainer.shap_values(x)
    assert values.shape == (SAMPLES, STEPS, 3, 2)
    assert effect.shape == (*x[1].shape, 2)
    total = values.sum((1, 2)) + effect.reshape(SAMPLES, -1, 2).sum(1)
    assert np.abs(total - (outputs(model, x) - explainer.expected_value)).max() < EXACT
    assert np.abs(explainer.expected_value - outputs(model, x0).mean(0)).max() < EXACT


def test_padding_gets_exactly_nothing(case: tuple[nn.Module, list[Tensor], list[Tensor]]) -> None:
    model, x, x0 = case
    values, _ = DeepExplainer(model, x0).shap_values(x)
    # An LSTM reads on in the padding where nothing but the attention is masked, to no effect.
    assert not values[~as_mask(LENGTHS).numpy()].any()
    assert values[as_mask(LENGTHS).numpy()].all()


def test_each_sample_is_explained_as_if_references_had_its_length(
    case: tuple[nn.Module, list[Tensor], list[Tensor]],
) -> None:
    model, x, x0 = case
    values, effect = DeepExplainer(model, x0).shap_values(x)
    for i in range(SAMPLES):
        alike = [x0[0], x[1][i : i + 1].expand(REFERENCES, *x[1].shape[1:])]
        expected, nothing = DeepExplainer(model, alike).shap_values([each[i : i + 1] for each in x])
        assert np.abs(values[i] - expected[0]).max() < EXACT
        assert not nothing.any()
        moved = outputs(model, alike).mean(0) - outputs(model, x0).mean(0)
        assert np.abs(effect[i].reshape(-1, 2).sum(0) - moved).max() < EXACT


def test_references_per_sample_have_lengths_of_their_own(
    case: tuple[nn.Module, list[Tensor], list[Tensor]],
) -> None:
    model, x, x0 = case
    of_each = [each[:3].expand(SAMPLES, 3, *each.shape[1:]).clone() for each in x0]
    of_each = [torch.stack([each[i].roll(i, 0) for i in range(SAMPLES)]) for each in of_each]
    values, effect = DeepExplainer(model, x0).shap_values(x, references=of_each)
    total = values.sum((1, 2)) + effect.reshape(SAMPLES, -1, 2).sum(1)
    expected = outputs(model, x) - outputs(model, [each[:3] for each in x0]).mean(0)
    assert np.abs(total - expected).max() < EXACT


def test_equal_lengths_have_no_effect() -> None:
    model = Packed().double()
    x, x0 = (torch.randn(n, STEPS, 3, dtype=torch.float64) for n in (SAMPLES, REFERENCES))
    _, effect = DeepExplainer(model, [x0, torch.full((REFERENCES,), 4)]).shap_values(
        [x, torch.full((SAMPLES,), 4)]
    )
    assert not effect.any()


class Segments(nn.Module):
    """Adds what segments look up to what tokens do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.segments = nn.Embedding(9, 3), nn.Embedding(2, 3)
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        return self.head(self.gru(torch.tanh(self.tokens(tokens) + self.segments(segments)))[0][:, -1])


@pytest.mark.parametrize("own", [False, True])
def test_what_is_explained_does_not_hang_on_the_rows_explained_together(own: bool) -> None:
    """Only the last sample has a second segment; all that come before are like the background."""
    model = Segments().double()
    x = [torch.randint(0, 9, (12, 5)), torch.zeros(12, 5).long()]
    x0 = [torch.randint(0, 9, (3, 5)), torch.zeros(3, 5).long()]
    x[1][-1, 3:] = 1
    explainer = DeepExplainer(model, x0)
    alone = explainer.shap_values([each[-1:] for each in x])
    references = [each.expand(12, *each.shape) for each in x0] if own else None
    together = explainer.shap_values(x, references=references)
    assert alone[1].any()
    for a, b in zip(alone, together, strict=True):
        assert np.abs(a[0] - b[-1]).max() < EXACT
