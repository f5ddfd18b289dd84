"""Keras' recurrent layers: what they become computes the same and is explained additively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rewriter
from passes.errors import DeclinedError, RewriteError
from passes.recurrent.recurrence import Recurrence
from rewriter.keras import to_keras, to_torch
from tests.support.keras_models import keras, outputs, rows, sequential, with_random_weights

L = keras.layers
# float32 in two orders of summation, over ten steps.
CLOSE = 1e-6

LAYERS: dict[str, Callable[[], list[Any]]] = {
    "LSTM": lambda: [L.LSTM(4)],
    "GRU": lambda: [L.GRU(4)],
    "GRU that resets before": lambda: [L.GRU(4, reset_after=False)],
    "SimpleRNN": lambda: [L.SimpleRNN(4, activation="relu")],
    "unrolled": lambda: [L.GRU(4, unroll=True)],
    "without bias, with dropout": lambda: [L.LSTM(4, use_bias=False, dropout=0.3, recurrent_dropout=0.2)],
    "GRU without bias": lambda: [L.GRU(4, use_bias=False)],
    "activations": lambda: [
        L.LSTM(4, activation="elu", recurrent_activation="hard_sigmoid", return_sequences=True),
        L.GRU(3, activation="softsign", return_sequences=True),
        L.SimpleRNN(3, activation="silu"),
    ],
    "backwards": lambda: [L.LSTM(4, go_backwards=True, return_sequences=True), L.GRU(3, go_backwards=True)],
    "cells": lambda: [L.RNN(L.GRUCell(4), return_sequences=True), L.RNN([L.LSTMCell(3), L.SimpleRNNCell(2)])],
    "both ways": lambda: [L.Bidirectional(L.LSTM(3, return_sequences=True)), L.Bidirectional(L.GRU(2))],
    "both ways, merged": lambda: [
        L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="mul"),
        L.Bidirectional(L.SimpleRNN(3, return_sequences=True), merge_mode="ave"),
        L.Bidirectional(L.LSTM(3), merge_mode="sum"),
    ],
    "backwards first": lambda: [
        L.Bidirectional(
            L.LSTM(3, go_backwards=True, return_sequences=True),
            backward_layer=L.GRU(3, return_sequences=True),
        ),
        L.Flatten(),
    ],
    "masked": lambda: [L.Masking(), L.LSTM(4, return_sequences=True), L.GRU(3)],
    "masked both ways": lambda: [
        L.Masking(),
        L.Bidirectional(L.GRU(3, return_sequences=True)),
        L.GlobalAveragePooling1D(),
    ],
    "over time": lambda: [
        L.TimeDistributed(L.Dense(3, "tanh")),
        L.TimeDistributed(L.Reshape((3, 1))),
        L.Flatten(),
    ],
}


def padded(count: int, seed: int = 1) -> Any:
    """Return sequences of which one ends early, one begins late, and one has a gap."""
    x = rows(count, 7, 3, seed=seed)
    x[0, 4:], x[1, :2], x[2, 3] = 0, 0, 0
    return x


@pytest.mark.parametrize("name", LAYERS)
def test_computes_the_same_and_is_additive(name: str) -> None:
    model = sequential(*LAYERS[name](), L.Dense(2))
    x, background = padded(3), padded(4, seed=2)
    made = to_torch(model)
    [expected] = outputs(model, x)
    got = made(torch.from_numpy(x)).detach()
    assert np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * max(1, np.abs(expected).max()))
    rolled = rewriter.decompose(made)
    assert not rolled.report.islands
    recurrent = any(isinstance(each, Recurrence) for each in rolled.modules())
    assert recurrent is (name != "over time")
    explainer = rewriter.DeepExplainer(made, torch.from_numpy(background), progress=False)
    values = torch.from_numpy(explainer.shap_values(torch.from_numpy(x)))
    change = got - made(torch.from_numpy(background)).detach().mean(0)
    assert torch.allclose(values.flatten(1, 2).sum(1), change.double(), atol=1e-6)


def test_states_and_initial_states() -> None:
    x, h, c = keras.Input((5, 3)), keras.Input((4,)), keras.Input((4,))
    out, *states = L.LSTM(4, return_state=True, return_sequences=True)(x, initial_state=[h, c])
    masked, last = L.GRU(4, return_state=True)(L.Masking()(x))
    both = L.Bidirectional(L.GRU(2, return_state=True), merge_mode=None)(x)
    stack = L.RNN([L.LSTMCell(3), L.GRUCell(2)], return_state=True)
    model = with_random_weights(keras.Model([x, h, c], [out, *states, masked, last, *both, *stack(x)]))
    given = rows(3, 5, 3), rows(3, 4), rows(3, 4, seed=2)
    given[0][0, 3:] = 0
    got = to_torch(model)(*map(torch.from_numpy, given))
    expected = outputs(model, *given)
    assert len(expected) == 13
    for a, b in zip(keras.tree.flatten(got), expected, strict=True):
        assert np.allclose(a.detach(), b, atol=CLOSE)


def test_embeddings_mask_zeros() -> None:
    tokens = keras.Input((6,), dtype="int32")
    embedded = L.Embedding(9, 3, mask_zero=True)(tokens)
    out = L.Dense(2)(L.LSTM(4)(L.Dropout(0.5)(embedded)))
    model = with_random_weights(keras.Model(tokens, out))
    x = np.array([[3, 1, 4, 0, 0, 0], [0, 2, 0, 7, 8, 0]], "int32")
    [expected] = outputs(model, x)
    assert np.allclose(to_torch(model)(torch.from_numpy(x)).detach(), expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: L.TimeDistributed(L.LSTM(2, stateful=True)),
            "each step begins where the one before ended",
        ),
        (lambda: L.LSTM(2, dtype="float16"), "it computes in float16"),
        (lambda: L.LSTM(2, activation=lambda x: x), "its activation '<lambda>' is not one of those"),
    ],
)
def test_what_cannot_be_rewritten_is_said(build: Callable[[], Any], message: str) -> None:
    layer = build()
    shape = (2, 4, 7, 3) if isinstance(layer, L.TimeDistributed) else (2, 7, 3)
    model = keras.Sequential([keras.Input(batch_shape=shape), layer])
    with pytest.raises(DeclinedError, match="1 module") as refused:
        to_torch(model)
    assert message in str(refused.value)


LAYER = st.builds(
    lambda kind, size, hidden, bias, both: kind(
        size, hidden, bias=bias, bidirectional=both, batch_first=True
    ),
    st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)


@given(LAYER, st.integers(1, 5))
@settings(max_examples=12)
def test_there_and_back_is_the_identity(layer: nn.RNNBase, steps: int) -> None:
    theirs = to_keras(layer)
    back = to_torch(theirs)
    assert type(back) is type(layer)
    x = torch.randn(2, steps, layer.input_size)
    out, state = layer(x)
    [sequence, *finals] = outputs(theirs, x.numpy())
    again, _ = back(x)
    assert np.allclose(sequence, out.detach(), atol=CLOSE)
    assert torch.allclose(again, out, atol=CLOSE)
    # Of each direction h, then c; torch has h of both, then c of both.
    states = state if isinstance(state, tuple) else (state,)
    expected = [each[k] for k in range(states[0].shape[0]) for each in states]
    for a, b in zip(finals, expected, strict=True):
        assert np.allclose(a, b.detach(), atol=CLOSE)
    for a, b in zip(to_keras(back).get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "cell", [nn.LSTMCell(3, 4), nn.GRUCell(3, 4, bias=False), nn.RNNCell(3, 4, nonlinearity="relu")]
)
def test_cells_go_there_and_back(cell: nn.RNNCellBase) -> None:
    back = to_torch(to_keras(cell))
    assert type(back) is type(cell)
    x = torch.randn(2, 3)
    for a, b in zip(back(x), cell(x), strict=True):
        assert torch.allclose(a, b, atol=CLOSE)


def test_several_layers_are_a_model() -> None:
    layer = nn.GRU(3, 2, num_layers=2, dropout=0.5, batch_first=True, bidirectional=True).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    out, state = layer(x)
    theirs = to_keras(layer)
    got = outputs(theirs, x.numpy())
    assert np.allclose(got[0], out.detach(), atol=1e-12)
    assert np.allclose(got[1:], state.detach(), atol=1e-12)
    assert torch.allclose(to_torch(theirs)(x)[0], out, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "message"),
    [(nn.Linear(2, 1), "got Linear"), (nn.LSTM(3, 4, proj_size=2), "has projections")],
)
def test_what_keras_has_not_is_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        to_keras(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (L.GRU(2, reset_after=False), "its reset_after is False"),
        (L.LSTM(2, activation="relu"), "its activations are relu, sigmoid"),
        (L.LSTM(2, go_backwards=True), "it goes backwards"),
        (L.RNN([L.GRUCell(2), L.GRUCell(2)]), "torch has no layer like RNN"),
        (L.Bidirectional(L.GRU(2), merge_mode="sum"), "its merge_mode is 'sum'"),
    ],
)
def test_what_torch_has_not_is_refused(layer: Any, message: str) -> None:
    layer.build((None, 4, 3))
    with pytest.raises(DeclinedError, match=message):
        to_torch(layer)
