"""Whether shap's DeepExplainer for TensorFlow explains a layer."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np

from rewriter.extras import optional
from rewriter.keras.installed import keras_module, kind_of

#: Layers for which it is known.
_KNOWN = (
    "Dense",
    "Dropout",
    "Flatten",
    "Reshape",
    "InputLayer",
    "Add",
    "Subtract",
    "Concatenate",
    "Identity",
)
# Of the largest change of the output.
_ADDITIVE = 1e-3


def why_not_explained(layer: Any, inputs: Any) -> str | None:
    """Run shap on a layer by itself; return what goes wrong.

    Args:
        layer: of Keras, on TensorFlow.
        inputs: a symbolic tensor, or a list of them, that it is called with.

    """
    if kind_of(layer) in _KNOWN and _plain(layer):
        return None
    shap = optional("shap", "rewriter.keras.decompose", "shap")
    keras = keras_module()
    single = not isinstance(inputs, list | tuple)
    given = [inputs] if single else list(inputs)
    if any(not str(each.dtype).startswith("float") for each in given):
        return "it takes integers, for which shap's backend for TensorFlow has no rule"
    own = [keras.Input(tuple(size or 4 for size in each.shape[1:])) for each in given]
    out = layer(own[0] if single else own)
    flat = keras.layers.Flatten()(out)
    model = keras.Model(own, keras.layers.Dense(1, kernel_initializer="glorot_uniform", use_bias=False)(flat))
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((3, *each.shape[1:])).astype("float32") for each in own]
    background, sample = [each[:2] for each in rows], [each[2:] for each in rows]
    shown = logging.getLogger("shap").level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("shap").setLevel(logging.ERROR)
            values = shap.DeepExplainer(model, background).shap_values(sample, check_additivity=False)
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"shap's backend for TensorFlow fails on it: {said[-1][:120]}"
    finally:
        logging.getLogger("shap").setLevel(shown)
    total = sum(float(np.sum(each)) for each in (values if isinstance(values, list) else [values]))
    made = [np.asarray(keras.ops.convert_to_numpy(model(each))).mean() for each in (sample, background)]
    change = float(made[0] - made[1])
    if abs(total - change) > _ADDITIVE * max(abs(change), 1e-3):
        return f"shap's values for it do not add up: {total:.3g}, expected {change:.3g}"
    return None


def _plain(layer: Any) -> bool:
    name = getattr(getattr(layer, "activation", None), "__name__", "linear")
    return name in ("linear", "relu", "sigmoid", "tanh", "softplus", "elu", "selu", "softmax")
