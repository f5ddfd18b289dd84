"""Decomposed for shap's DeepExplainer on TensorFlow: additive, and the values of our engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from passes.errors import DeclinedError, RewriteError
from rewriter.keras import decompose, to_torch
from tests.support.keras_models import ON_TENSORFLOW, keras, outputs, rows, sequential

pytestmark = pytest.mark.skipif(not ON_TENSORFLOW, reason="TensorFlow is not installed")
L = keras.layers
# What shap's backend leaves out where an input differs by less than 1e-7, and float32.
CLOSE = 1e-5


def stock_values(model: Any, background: Any, x: Any) -> Any:
    shap = pytest.importorskip("shap", reason="shap is not installed")
    logging.getLogger("shap").setLevel(logging.ERROR)
    return shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)


MODELS: dict[str, Callable[[], list[Any]]] = {
    "LSTM": lambda: [L.LSTM(2)],
    "both ways": lambda: [L.Bidirectional(L.GRU(1), backward_layer=L.SimpleRNN(1, go_backwards=True))],
}


@pytest.mark.filterwarnings("ignore")  # TensorFlow's and numpy's, of each other
@pytest.mark.parametrize("name", MODELS)
def test_values_are_additive_and_those_of_the_engine(name: str) -> None:
    model = sequential(*MODELS[name](), L.Dense(1), shape=(3, 2))
    x, background = rows(2, 3, 2), rows(3, 3, 2, seed=2)
    values = stock_values(decompose(model), background, x)
    [y], [y0] = outputs(model, x), outputs(model, background)
    change = y - y0.mean(0)
    assert np.abs(values.sum((1, 2)) - change).max() <= 1e-6 * np.abs(change).max()
    explainer = rewriter.DeepExplainer(to_torch(model), torch.from_numpy(background), progress=False)
    ours = explainer.shap_values(torch.from_numpy(x))
    assert np.abs(values - ours).max() <= CLOSE * np.abs(ours).max()


def test_computes_the_same_over_fifty_steps() -> None:
    model = sequential(L.LSTM(2), L.Dense(2), shape=(50, 2))
    x = rows(3, 50, 2)
    assert np.allclose(outputs(decompose(model), x)[0], outputs(model, x)[0], atol=1e-6)


def test_nothing_recurrent_is_left() -> None:
    model = sequential(
        L.RNN([L.LSTMCell(3), L.SimpleRNNCell(2)], return_sequences=True, go_backwards=True),
        L.Bidirectional(L.LSTM(2), merge_mode="mul"),
        L.Dense(2),
        shape=(6, 2),
    )
    made = decompose(model)
    assert not any(isinstance(each, L.RNN | L.Bidirectional) for each in made.layers)
    x = rows(3, 6, 2)
    assert np.allclose(outputs(made, x)[0], outputs(model, x)[0], atol=1e-6)


def test_initial_states() -> None:
    x, h = keras.Input((3, 2)), keras.Input((4,))
    model = keras.Model([x, h], L.GRU(4, return_state=True)(x, initial_state=h))
    given = rows(2, 3, 2), rows(2, 4)
    for a, b in zip(outputs(decompose(model), *given), outputs(model, *given), strict=True):
        assert np.allclose(a, b, atol=1e-6)


class Subclassed(keras.Model):  # type: ignore[misc]  # Keras is Any
    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.Sequential([keras.Input((4, 2)), L.SimpleRNN(3)])
        self.head = L.Dense(1)

    def call(self, x: Any) -> Any:
        return self.head(self.inner(x))


def test_a_class_of_the_users_stays_as_it_is() -> None:
    model = Subclassed()
    with pytest.raises(RewriteError, match="the shape of its input is not known"):
        decompose(model)
    x = rows(2, 4, 2)
    model(x)
    before = [len(each._inbound_nodes) for each in model._flatten_layers()]
    assert np.allclose(outputs(decompose(model), x)[0], outputs(model, x)[0], atol=1e-6)
    assert [len(each._inbound_nodes) for each in model._flatten_layers()] == before


class Branching(Subclassed):
    def build(self, shape: Any) -> None:
        self.head.build((None, 3))

    def call(self, x: Any) -> Any:
        return self.head(self.inner(x)) if float(x[0, 0, 0]) > 0 else x


def test_code_that_cannot_be_followed_is_said() -> None:
    model = Branching()
    model(np.ones((2, 4, 2), "float32"))
    with pytest.raises(RewriteError, match=r"the code of Branching\.call cannot be followed"):
        decompose(model)


def test_no_model_of_keras() -> None:
    with pytest.raises(RewriteError, match="expected a model of Keras, got LSTM"):
        decompose(L.LSTM(2))


@pytest.mark.filterwarnings("ignore")  # TensorFlow's and numpy's, of each other
def test_what_shap_cannot_do_is_said_by_layer_with_the_way_out() -> None:
    pytest.importorskip("shap", reason="shap is not installed")
    model = sequential(L.Masking(), L.LayerNormalization(), L.LSTM(2), L.Dense(1), shape=(3, 2))
    with pytest.raises(DeclinedError) as refused:
        decompose(model)
    said = str(refused.value)
    assert [each.kind for each in refused.value.declines] == ["Masking", "LayerNormalization", "LSTM"]
    assert "it is called with a mask" in said
    assert "rewriter.keras.to_torch(model)" in said
    without = sequential(L.LayerNormalization(), L.LSTM(2), L.Dense(1), shape=(3, 2))
    x = rows(2, 3, 2)
    assert np.allclose(outputs(decompose(without, strict=False), x)[0], outputs(without, x)[0], atol=1e-6)


def test_a_layer_that_is_called_twice_is_there_once() -> None:
    x = keras.Input((4, 2))
    shared = L.LSTM(3)
    model = keras.Model(x, L.Add()([shared(x), shared(keras.ops.flip(x, axis=1))]))
    made = decompose(model)
    given = rows(2, 4, 2)
    assert np.allclose(outputs(made, given)[0], outputs(model, given)[0], atol=1e-6)
    # Of each gate one for the input and one for the state, and what makes zeros.
    assert sum(isinstance(each, L.Dense) for each in made.layers) == 9


def test_half_precision_is_refused() -> None:
    with pytest.raises(DeclinedError, match=r"half \(GRU\): it computes in float16"):
        decompose(sequential(L.GRU(2, dtype="mixed_float16", name="half"), shape=(3, 2)))


def test_an_unknown_length_is_said() -> None:
    with pytest.raises(DeclinedError, match="the number of its steps is not known"):
        decompose(sequential(L.LSTM(2), shape=(None, 2)))
