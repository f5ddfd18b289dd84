"""Keras' recurrent layers as loops in ONNX files, at any length: onnxruntime computes what Keras computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from rewriter.keras import to_torch
from tests.support.keras_models import keras, outputs, rows, sequential

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
L = keras.layers
# float32 in two orders of summation, over three layers and nine steps.
CLOSE = 1e-6


def gru(units: int, activation: str, gates: str, **options: Any) -> Any:
    return L.GRU(units, activation=activation, recurrent_activation=gates, reset_after=False, **options)


LAYERS: dict[str, Callable[[], list[Any]]] = {
    # Written by ourselves, and exported by torch where activations are not atoms; both in one file.
    "GRU that resets before": lambda: [
        gru(3, "tanh", "sigmoid", return_sequences=True),
        gru(2, "elu", "softmax", return_sequences=True, go_backwards=True),
        gru(2, "mish", "hard_sigmoid", use_bias=False),
    ],
    "others": lambda: [
        L.LSTM(3, activation="silu", recurrent_activation="hard_sigmoid", return_sequences=True),
        L.GRU(3, activation="gelu", recurrent_activation="softsign", return_sequences=True),
        L.SimpleRNN(2, activation="log_softmax"),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_loops_compute_the_same(name: str, tmp_path: Path) -> None:
    model = sequential(*LAYERS[name](), L.Dense(2), shape=(None, 3))
    made = to_torch(model)
    path = tmp_path / "model.onnx"
    [argument] = (node.name for node in made.graph.nodes if node.op == "placeholder")
    axes = {argument: {0: "batch", 1: "steps"}}
    rewriter.export_onnx(made, torch.from_numpy(rows(2, 4, 3)), path, loops=True, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path)
    for count, steps in ((2, 4), (3, 9), (1, 1)):
        x = rows(count, steps, 3, seed=steps)
        [expected], [got] = outputs(model, x), session.run(None, {argument: x})
        assert np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * np.abs(expected).max())
