"""The extra ``tensorflow``: stock shap explains a rewritten Keras model on TensorFlow."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import shap

import rewriter.keras

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
background, x = keras.random.normal((6, 5, 3)).numpy(), keras.random.normal((2, 5, 3)).numpy()
rewritten = rewriter.keras.decompose(model)
values = shap.DeepExplainer(rewritten, background).shap_values(x)
explained = model(x).numpy() - model(background).numpy().mean(0)
assert np.abs(values.sum((1, 2)) - explained).max() < 1e-5
