"""Keras models of recurrent layers with any options, with rows that they are explained on."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.programs import Drawn

_IMPORTS = """\
from tests.support.keras_models import keras, rows, with_random_weights

L = keras.layers
"""
# shap's backend for TensorFlow has a rule for each; it takes others apart, by other rules than rescale.
_ACTIVATIONS = ("tanh", "sigmoid", "relu", "elu", "selu", "softplus", "linear")
# Gates that are exactly 0 make states that are equal in sample and reference for different reasons. shap's
# rule for TensorFlow's products has nothing for an equal operand, where the limit is the mean of the other;
# both add up.
_GATES = tuple(name for name in _ACTIVATIONS if name != "relu")
_DTYPE = "dtype='float64'"


def _layer(draw: st.DrawFn, *, torchs: bool, sequences: bool) -> tuple[str, str]:
    """Return the code of a layer, and its kind."""
    kind = draw(st.sampled_from(["LSTM", "GRU", "SimpleRNN"]))
    options: dict[str, Any] = {"use_bias": draw(st.booleans())}
    both, merge = draw(st.booleans()), "concat"
    if torchs and kind == "SimpleRNN":
        options["activation"] = draw(st.sampled_from(["tanh", "relu"]))
    if not torchs:
        options["activation"] = draw(st.sampled_from(_ACTIVATIONS))
        if kind != "SimpleRNN":
            options["recurrent_activation"] = draw(st.sampled_from(_GATES))
        if kind == "GRU":
            options["reset_after"] = draw(st.booleans())
        if both:
            merge = draw(st.sampled_from(["concat", "sum", "mul", "ave"]))
        else:
            options["go_backwards"] = draw(st.booleans())
    options["return_sequences"] = sequences
    shown = "".join(f", {name}={value!r}" for name, value in options.items())
    code = f"L.{kind}({draw(st.integers(1, 3))}{shown}, {_DTYPE})"
    return f"L.Bidirectional({code}, merge_mode={merge!r}, {_DTYPE})" if both else code, kind


@st.composite
def keras_models(draw: st.DrawFn) -> Drawn:
    """Draw one or two layers, half of them such as torch has, a Dense, and steps that all rows mask."""
    steps, features = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 2))
    sequences = draw(st.booleans())
    torchs = draw(st.booleans())
    layers = [_layer(draw, torchs=torchs, sequences=k < count - 1 or sequences) for k in range(count)]
    masked = []
    if not torchs and draw(st.booleans()):
        masked = sorted(draw(st.sets(st.integers(0, steps - 1), max_size=steps - 1)))
    parts = [code for code, _ in layers]
    if masked:
        parts = [f"L.Masking({_DTYPE})", *parts]
    if sequences:
        parts.append(f"L.Flatten({_DTYPE})")
    shape = f"({steps}, {features})"
    lines = [
        _IMPORTS,
        f"model = keras.Sequential([keras.Input({shape}, {_DTYPE})])",
        *(f"model.add({part})" for part in parts),
        f"model.add(L.Dense(1, {_DTYPE}))",
        f"with_random_weights(model, seed={draw(st.integers(0, 99))})",
        f"x, background = (rows(2, {steps}, {features}, seed=k).astype('float64') for k in (1, 2))",
        f"masked = {masked}",
        "x[:, masked] = background[:, masked] = 0",
    ]
    return Drawn("\n".join(lines) + "\n", tuple(kind for _, kind in layers))
