"""The extra ``keras``: a Keras model on torch is explained."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch

from rewriter import DeepExplainer
from rewriter.keras import to_torch

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
background, x = torch.randn(6, 5, 3), torch.randn(2, 5, 3)
values = DeepExplainer(model, background).shap_values(x)
with torch.no_grad():
    explained = model(x) - model(background).mean(0)
    assert (to_torch(model)(x) - model(x)).abs().max() < 1e-6
assert (torch.as_tensor(values).sum((1, 2)) - explained).abs().max() < 1e-6
