"""A row says of itself why it has no explanation, and numbers are never changed to fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer
from rewriter.jobs.rows import Attributor


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(x)).flatten(1))


def attributor(model: nn.Module, background: Tensor, nearer: Nearer | None = None) -> Attributor:
    explainer = DeepExplainer(model.eval(), background, progress=False)
    return Attributor(
        explainer, ("x",), (background.dtype,), (tuple(background.shape[1:]),), nearer or Nearer()
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_numbers_that_are_no_tokens_cost_their_rows_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = attributor(Tokens(), torch.randint(0, 20, (4, 3), dtype=dtype))
    x = np.random.default_rng(0).integers(0, 20, (6, 3)).astype(np.float64)
    whole = rows.explain(0, {"x": x.astype(np.int64)})
    assert whole.errors == (None,) * 6
    x[1, 2], x[2, 0], x[4, 1] = 3.7, np.nan, 1e19
    found = rows.explain(10, {"x": x})
    assert [k for k, each in enumerate(found.errors) if each] == [1, 2, 4]
    assert found.errors[1] == f"x: 3.7 at (2,): the background holds {str(dtype)[6:]}, which this is not"
    assert str(found.errors[2]).startswith("x: nan at (0,): missing")
    np.testing.assert_array_equal(found.values["x"][[0, 3, 5]], whole.values["x"][[0, 3, 5]])


def test_a_row_of_no_numbers_at_all_is_told_as_a_whole() -> None:
    x = np.ones((3, 3))
    x[1] = np.nan
    found = attributor(nn.Linear(3, 2), torch.randn(4, 3)).explain(0, {"x": x})
    assert found.errors == (None, "x: no number in it: missing, damaged, or of another shape", None)


def test_integers_are_cast_for_a_background_of_floats() -> None:
    rows = attributor(nn.Linear(3, 2), torch.randn(4, 3))
    x = np.arange(6).reshape(2, 3)
    found, expected = rows.explain(0, {"x": x}), rows.explain(0, {"x": x.astype(np.float32)})
    assert found.errors == (None, None)
    np.testing.assert_array_equal(found.values["x"], expected.values["x"])
    assert "too large" in str(rows.explain(0, {"x": np.array([[1e300, 0, 0]])}).errors[0])


class Untold(nn.Module):
    """What has no rule where a number is large."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.sum(1) > 5, (x.detach() ** 2).sum(1), torch.tanh(x).sum(1))


def test_an_error_names_the_row() -> None:
    rows = attributor(Untold(), torch.zeros(2, 3))
    rows.check()
    x = np.zeros((5, 3), np.float32)
    x[3] = 4
    errors = rows.explain(40, {"x": x}).errors
    assert [k for k, each in enumerate(errors) if each] == [3]
    assert "of row 43 sum to" in str(errors[3])
    assert not any(each in str(errors[3]) for each in ("sample 0", "row 0"))


@pytest.mark.parametrize(
    ("nearer", "said"),
    [
        ({"draws": 2}, "a single block has no order to draw"),
        ({"cells": "shapley"}, "no recurrence"),
        ({"groups": np.arange(7), "blocks": 2}, "broadcasts to the shape"),
    ],
    ids=["draws", "cells", "groups"],
)
def test_an_option_that_cannot_hold_is_said_before_any_row(nearer: Nearer, said: str) -> None:
    with pytest.raises(RewriteError, match=said):
        attributor(nn.Linear(3, 2), torch.randn(4, 3), nearer).check()
