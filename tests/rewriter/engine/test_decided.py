"""Lengths and masks that a model reads off its inputs, against stock shap with references read alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rewriter import DeepExplainer
from rewriter.engine.kept_state import keeps_state
from rewriter.engine.runs.rows import decided
from rewriter.explainer import contexts
from tests.support.stock import stock

STEPS = 6
# Sums of a few hundred float64 numbers of size 1.
EXACT = 1e-12


class Reads(nn.Module):
    """Looks tokens up and reads as many of them as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.lstm, self.score, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 1), nn.Linear(5, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embedding(tokens), tokens != 0)

    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class Last(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][torch.arange(len(x)), mask.sum(1) - 1])
        return y


class Gathered(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        last = (mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, 5)
        y: Tensor = self.head(self.lstm(x)[0].gather(1, last)[:, 0])
        return y


class Packed(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        y: Tensor = self.head(self.lstm(packed)[1][0][-1])
        return y


class Mean(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).to(x.dtype)
        y: Tensor = self.head((self.lstm(x)[0] * weights).sum(1) / weights.sum(1))
        return y


class Maximum(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.lstm(x)[0].masked_fill(~mask.unsqueeze(-1), -1e9)
        y: Tensor = self.head(h.amax(1))
        return y


class Attention(Reads):
    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.lstm(x)[0]
        weights = self.score(torch.tanh(h))[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
        y: Tensor = self.head((weights.unsqueeze(-1) * h).sum(1))
        return y


class AsRead(nn.Module):
    """The same, of what was looked up, by a mask that does not change."""

    def __init__(self, model: Reads, mask: Tensor) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, x: Tensor) -> Tensor:
        return self.model.read(x, self.mask.expand(len(x), -1))


KINDS = [Last, Gathered, Packed, Mean, Maximum, Attention]


def _tokens(rows: int) -> Tensor:
    lengths = torch.randint(2, STEPS + 1, (rows, 1))
    return torch.randint(1, 9, (rows, STEPS)) * (torch.arange(STEPS) < lengths)


def _expected(model: Reads, tokens: Tensor, background: Tensor) -> np.ndarray:
    """Explain each sample by references in its mask, and share what the mask does among where it differs."""
    rows = []
    for sample in tokens:
        read = AsRead(model, sample != 0).eval()
        with torch.no_grad():
            found, found0 = model.embedding(sample[None]), model.embedding(background)
            effect = read(found0) - model(background)
        values = stock(read, found0, found)[0].sum(1)
        differs = ((background != 0) != (sample != 0)).double()
        share = differs / differs.sum(1, keepdim=True).clamp(min=1)
        rows.append(values + (share.T @ effect / len(background)).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_read_as_the_sample(kind: type[Reads]) -> None:
    model = kind().double().eval()
    tokens, background = _tokens(4), _tokens(5)
    # Two samples are read alike, and one as a reference is.
    tokens[1] = torch.where(tokens[0] > 0, 1 + tokens[0] % 8, 0)
    tokens[2] = background[0]
    got = DeepExplainer(model, background).shap_values(tokens)
    assert np.abs(got - _expected(model, tokens, background)).max() < EXACT
    with torch.no_grad():
        change = (model(tokens) - model(background).mean(0)).numpy()
    assert np.abs(got.sum(1) - change).max() < EXACT


@pytest.mark.parametrize("kind", [Last, Packed, Attention])
def test_it_does_not_matter_what_is_explained_together(kind: type[Reads]) -> None:
    model = kind().double().eval()
    tokens, background = _tokens(4), _tokens(5)
    explainer = DeepExplainer(model, background)
    together = explainer.shap_values(tokens)
    for k in range(4):
        assert np.abs(explainer.shap_values(tokens[k : k + 1]) - together[k : k + 1]).max() < EXACT
    references = background.expand(4, *background.shape)
    assert np.abs(explainer.shap_values(tokens, references=references) - together).max() < EXACT
    assert np.abs(DeepExplainer(model, background, max_memory=1).shap_values(tokens) - together).max() < EXACT


class OffZeros(nn.Module):
    """Reads the length off zeros behind the end, of a series of numbers."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.gru, self.head, self.mask = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), mask

    def forward(self, x: Tensor) -> Tensor:
        masks = {"any": (x != 0).any(-1), "sum": x.abs().sum(-1) > 0, "first": x[..., 0].ne(0)}
        lengths = masks[self.mask].sum(1)
        y: Tensor = self.head(self.gru(x)[0][torch.arange(len(x)), lengths - 1])
        return y


class LengthInNumbers(OffZeros):
    """Gets lengths as floating point numbers, in a column of a table of its own."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.head(self.gru(x)[0][torch.arange(len(x)), table[:, 0].long() - 1])
        return y


def _series(rows: int) -> Tensor:
    lengths = torch.randint(2, STEPS + 1, (rows, 1))
    return torch.randn(rows, STEPS, 3).double() * (torch.arange(STEPS) < lengths).unsqueeze(-1)


@pytest.mark.parametrize("mask", ["any", "sum", "first"])
def test_lengths_off_zeros(mask: str) -> None:
    model, x, background = OffZeros(mask).double().eval(), _series(4), _series(5)
    got = DeepExplainer(model, background).shap_values(x)
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).numpy()
    assert np.abs(got.sum((1, 2)) - change).max() < EXACT
    # Where neither a sample nor any reference goes on there is nothing to explain.
    ended = (x == 0).all(-1) & (background == 0).all(-1).all(0)
    assert not got[ended.numpy()].any()


def test_complex_numbers_are_no_places() -> None:
    class Spectrum(OffZeros):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.fft.fft(x, n=4).abs()[:, -1])
            return y

    model, x, background = Spectrum("any").double().eval(), _series(3), _series(4)
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).numpy()
    got = DeepExplainer(model, background).shap_values(x)
    assert np.abs(got.sum((1, 2)) - change).max() < EXACT


def test_lengths_as_floating_point_numbers() -> None:
    model = LengthInNumbers("").double().eval()
    sides = [[_series(rows), torch.randint(2, STEPS, (rows, 2)).double()] for rows in (4, 5)]
    x, table = DeepExplainer(model, sides[1]).shap_values(sides[0])
    with torch.no_grad():
        change = (model(*sides[0]) - model(*sides[1]).mean(0)).numpy()
    assert np.abs(x.sum((1, 2)) + table.sum(1) - change).max() < EXACT
    assert not table[:, 1].any()
    behind = torch.arange(STEPS) >= sides[0][1][:, :1]
    assert not x[behind.numpy()].any()


@pytest.mark.parametrize("mask", ["any", "sum", "first"])
def test_what_one_call_read_says_nothing_of_the_next(mask: str) -> None:
    model, background = OffZeros(mask).double().eval(), _series(5)
    full, x = torch.randn(4, STEPS, 3).double(), _series(4)
    explainer = DeepExplainer(model, background)
    with torch.no_grad():
        for each in (full, x, full):
            change = (model(each) - model(background).mean(0)).numpy()
            assert np.abs(explainer.shap_values(each).sum((1, 2)) - change).max() < EXACT


def test_a_graph_that_reads_nothing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(*args: Any) -> Any:
        asked.append(args)
        return decided(*args)

    monkeypatch.setattr(contexts, "decided", noted)
    series = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * STEPS, 2)).double().eval()
    explainer = DeepExplainer(series, _series(5))
    for rows in (4, 3):
        explainer.shap_values(_series(rows))
    assert len(asked) == 1
    reads = Mean().double().eval()
    explainer = DeepExplainer(reads, _tokens(5))
    for rows in (4, 3):
        asked.clear()
        explainer.shap_values(_tokens(rows))
        assert asked


def test_torchs_own_lists_of_parameters_are_no_state() -> None:
    class Counting(nn.LSTM):
        calls = 0

        def forward(self, *args: Any) -> Any:
            self.calls += 1
            return super().forward(*args)

    x = torch.zeros(2, STEPS, 3)
    assert not keeps_state(nn.Sequential(nn.LSTM(3, 4, batch_first=True)), [x])
    assert keeps_state(nn.Sequential(Counting(3, 4, batch_first=True)), [x])
