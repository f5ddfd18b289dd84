"""Presorted packs, lengths and masks as floating point numbers, and what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rewriter import DeepExplainer, RewriteError
from tests.support.stock import stock

STEPS = 6
# Sums of a few hundred float64 numbers of size 1.
EXACT = 1e-12


class Reads(nn.Module):
    """Reads series as the second input says; or as zeros behind their ends do, without one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.gru, self.head, self.how = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), how

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        y: Tensor = self.read(x, (x.abs().sum(-1) > 0).sum(1) if told is None else told)
        return y

    def read(self, x: Tensor, told: Tensor) -> Tensor:
        if self.how in ("sorted", "packed"):
            lengths = told.long().cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.how == "sorted")
            h = self.gru(packed)[1][0]
        elif self.how == "last":
            h = self.gru(x)[0][torch.arange(len(x)), told.long() - 1]
        elif self.how == "divided":
            within = torch.arange(STEPS) < told[:, None]
            h = (self.gru(x)[0] * within.unsqueeze(-1)).sum(1) / told[:, None]
        else:
            h = self.gru(x)[0].masked_fill(~told.bool().unsqueeze(-1), -1e9).amax(1)
        y: Tensor = self.head(h)
        return y


class AsTold(nn.Module):
    """The same, of what is always told the same."""

    def __init__(self, model: Reads, told: Tensor) -> None:
        super().__init__()
        self.model, self.told = model, told

    def forward(self, x: Tensor) -> Tensor:
        return self.model.read(x, self.told.expand(len(x), *self.told.shape))


def _series(rows: int) -> tuple[Tensor, Tensor]:
    """Return series that are zero behind their ends, the longest first, and their lengths."""
    lengths = torch.randint(2, STEPS + 1, (rows,)).sort(descending=True).values
    within = torch.arange(STEPS) < lengths[:, None]
    return torch.randn(rows, STEPS, 3).double() * within.unsqueeze(-1), lengths


def _expected(model: Reads, x: list[Tensor], background: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Explain each sample by references that are told the same, and what being told it does."""
    values, effects = [], []
    for row, told in zip(*x, strict=True):
        read = AsTold(model, told).eval()
        values.append(stock(read, background[0], row[None])[0])
        with torch.no_grad():
            effects.append((read(background[0]) - model(*background)).mean(0).numpy())
    return np.stack(values), np.stack(effects)


@pytest.mark.parametrize("dtype", [torch.long, torch.double])
@pytest.mark.parametrize("how", ["sorted", "packed", "last"])
def test_lengths_beside_the_series(how: str, dtype: torch.dtype) -> None:
    model = Reads(how).double().eval()
    sides = [[x, lengths.to(dtype)] for x, lengths in map(_series, (4, 5))]
    expected, effects = _expected(model, *sides)
    values, of_lengths = DeepExplainer(model, sides[1]).shap_values(sides[0])
    assert np.abs(values - expected).max() < EXACT
    assert np.abs(of_lengths - effects).max() < EXACT


def test_masks_as_floating_point_numbers() -> None:
    model = Reads("maximum").double().eval()
    sides = [[x, (torch.arange(STEPS) < lengths[:, None]).double()] for x, lengths in map(_series, (4, 5))]
    expected, effects = _expected(model, *sides)
    values, of_mask = DeepExplainer(model, sides[1]).shap_values(sides[0])
    assert np.abs(values - expected).max() < EXACT
    assert np.abs(of_mask.sum(1) - effects).max() < EXACT


@pytest.mark.parametrize("how", ["sorted", "packed", "last"])
def test_lengths_off_zeros(how: str) -> None:
    model, (x, lengths), (background, others) = Reads(how).double().eval(), _series(4), _series(5)
    expected, _ = _expected(model, [x, lengths], [background, others])
    got = DeepExplainer(model, background).shap_values(x)
    for i, row in enumerate(x):
        with torch.no_grad():
            effect = AsTold(model, lengths[i])(background) - model(background)
        # A sum over features is of no one element: what differs shares what being read so does.
        differs = (background != row).double()
        share = differs / differs.sum((1, 2), keepdim=True)
        of_length = torch.einsum("ntf,nk->tfk", share, effect) / len(background)
        assert np.abs(got[i] - expected[i] - of_length.numpy()).max() < EXACT


def test_lengths_divide_as_numbers_do() -> None:
    model = Reads("divided").double().eval()
    sides = [[x, lengths.double()] for x, lengths in map(_series, (4, 5))]
    values, of_lengths = DeepExplainer(model, sides[1]).shap_values(sides[0])
    with torch.no_grad():
        change = (model(*sides[0]) - model(*sides[1]).mean(0)).numpy()
    assert np.abs(values.sum((1, 2)) + of_lengths - change).max() < EXACT


class Fills(nn.Module):
    """Fills in what is missing, by a value that it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        self.value = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        filled = torch.where(x.isnan() if missing is None else missing, self.value, x)
        y: Tensor = self.head(self.gru(filled)[0][:, -1])
        return y


def test_what_to_pass_for_what_is_missing() -> None:
    model = Fills().double().eval()
    x, background = (
        torch.where(torch.rand(rows, STEPS, 3) < 0.2, torch.nan, torch.randn(rows, STEPS, 3).double())
        for rows in (4, 5)
    )
    advice = r"background, input 0: .*NaN.*torch\.nan_to_num.*x\.isnan\(\) as an input of its own"
    with pytest.raises(RewriteError, match=advice):
        DeepExplainer(model, background)
    sides: list[list[Any]] = [[each.nan_to_num(), each.isnan()] for each in (x, background)]
    values, of_missing = DeepExplainer(model, sides[1]).shap_values(sides[0])
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).numpy()
    assert np.abs(values.sum((1, 2)) + of_missing.sum((1, 2)) - change).max() < EXACT
    assert not values[x.isnan().numpy()].any()
