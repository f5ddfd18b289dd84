"""Stateful layers: a torch module begins at the state that they have, and leaves it as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from passes.errors import DeclinedError
from rewriter.keras import to_torch
from rewriter.keras.weights import array_of
from tests.support.keras_models import keras, outputs, rows, with_random_weights

L = keras.layers
# float32 in two orders of summation, over five steps.
CLOSE = 1e-6

LAYERS: dict[str, Callable[[], list[Any]]] = {
    "LSTM": lambda: [L.LSTM(3, stateful=True, return_sequences=True), L.GRU(2, stateful=True)],
    "stacked cells": lambda: [L.RNN([L.LSTMCell(3), L.GRUCell(2, reset_after=False)], stateful=True)],
    "both ways": lambda: [L.Bidirectional(L.GRU(3, stateful=True), merge_mode="sum")],
    "masked": lambda: [
        L.Masking(),
        L.SimpleRNN(3, stateful=True, return_sequences=True, go_backwards=True),
        L.LSTM(2, stateful=True),
    ],
}


def stateful(count: int, *layers: Any) -> Any:
    model = keras.Sequential([keras.Input(batch_shape=(count, 5, 3)), *layers, L.Dense(2)])
    return with_random_weights(model)


def states_of(model: Any) -> list[Any]:
    found = [each.states for each in model._flatten_layers() if hasattr(each, "states")]
    return [array_of(each).copy() for each in keras.tree.flatten(found) if each is not None]


def set_states(model: Any, numbers: list[Any]) -> None:
    variables = [each.states for each in model._flatten_layers() if hasattr(each, "states")]
    for each, value in zip(keras.tree.flatten(variables), numbers, strict=True):
        each.assign(value)


@pytest.mark.parametrize("name", LAYERS)
def test_begins_at_the_state_and_leaves_it(name: str) -> None:
    model = stateful(1, *LAYERS[name]())
    outputs(model, rows(1, 5, 3))
    x = rows(1, 5, 3, seed=2)
    x[0, 1:3] = 0
    before = states_of(model)
    assert before
    made = to_torch(model)
    got = [made(torch.from_numpy(x)).detach().numpy() for _ in range(2)]
    for a, b in zip(states_of(model), before, strict=True):
        assert np.array_equal(a, b)
    [expected] = outputs(model, x)
    for each in got:
        assert np.allclose(each, expected, atol=CLOSE)
    if name != "masked":
        assert not np.allclose(outputs(model, x)[0], expected, atol=1e-3)


def test_is_explained_from_the_state_that_it_has() -> None:
    model = stateful(1, L.LSTM(3, stateful=True))
    x, background = rows(2, 5, 3, seed=2), rows(3, 5, 3, seed=3)
    explainer = rewriter.DeepExplainer(model, torch.from_numpy(background), progress=False)
    for seed in (4, 5):
        before = states_of(model)
        values = explainer.shap_values(torch.from_numpy(x))
        for a, b in zip(states_of(model), before, strict=True):
            assert np.array_equal(a, b)
        by_row = []
        for row in (*x, *background):
            set_states(model, before)
            by_row.append(outputs(model, row[None])[0][0])
        change = np.stack(by_row[:2]) - np.stack(by_row[2:]).mean(0)
        assert np.allclose(values.sum((1, 2)), change, atol=CLOSE)
        set_states(model, before)
        assert np.allclose(explainer.expected_value, np.stack(by_row[2:]).mean(0), atol=CLOSE)
        # The user goes on: the state is another one.
        outputs(model, rows(1, 5, 3, seed=seed))


def test_rows_with_states_of_their_own_are_refused() -> None:
    model = stateful(2, L.GRU(3, stateful=True, name="kept"))
    x = rows(2, 5, 3)
    made = to_torch(model)
    expected = made(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(outputs(model, x)[0], expected, atol=CLOSE)
    with pytest.raises(DeclinedError, match=r"kept \(GRU\): it is stateful, and the rows of its batch"):
        to_torch(model)
    model.layers[0].reset_state()
    # Three rows, where the model takes two.
    explainer = rewriter.DeepExplainer(model, torch.from_numpy(rows(3, 5, 3)), progress=False)
    values = explainer.shap_values(torch.from_numpy(x))
    outputs(model, x)
    with pytest.raises(DeclinedError, match=r"kept \(GRU\): it is stateful, and the rows of its batch"):
        explainer.shap_values(torch.from_numpy(x))
    model.layers[0].reset_state()
    assert np.array_equal(explainer.shap_values(torch.from_numpy(x)), values)
