"""Keras, on TensorFlow where that is installed, else on torch, and models of it with random weights."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest

ON_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
# Other tests of a process need it there, too.
os.environ["KERAS_BACKEND"] = "tensorflow" if ON_TENSORFLOW else "torch"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
keras: Any = pytest.importorskip("keras", reason="Keras is not installed")


def sequential(*layers: Any, shape: tuple[int | None, ...] = (7, 3)) -> Any:
    """Return a model of some layers with random weights."""
    return with_random_weights(keras.Sequential([keras.Input(shape), *layers]))


def with_random_weights(model: Any, seed: int = 0) -> Any:
    """Give each weight random numbers, those that are variances positive ones."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        numbers = rng.standard_normal(weight.shape) * 0.5
        weight.assign(np.abs(numbers) + 0.5 if "variance" in weight.path else numbers)
    return model


def rows(*shape: int, seed: int = 1) -> Any:
    """Return random numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def outputs(model: Any, *inputs: Any) -> list[Any]:
    """Return what a model of Keras gives, as arrays in the order in which they come."""
    given = [keras.ops.convert_to_tensor(each) for each in inputs]
    made = model(given if len(given) > 1 else given[0])
    return [np.asarray(keras.ops.convert_to_numpy(each)) for each in keras.tree.flatten(made)]
