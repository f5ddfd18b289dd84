"""Recurrent layers written by hand in TensorFlow, a Dense for each gate, from Keras' formulas.

It shares no code with the rewriter: it says what the SHAP values of Keras' layers should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.support.keras_models import keras

State = list[Any]
Step = Callable[[Any, State], State]


def by_hand(model: Any, masked: Sequence[int]) -> Any:
    """Return a model of Dense layers, activations, sums and products that computes what another does.

    Args:
        model: a Sequential one of Masking, recurrent layers, Flatten and Dense.
        masked: the steps that all rows mask.

    """
    x = inputs = keras.Input(model.input_shape[1:], dtype=model.layers[-1].dtype)
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "Bidirectional":
            x = _both(layer, x, masked)
        elif kind in _CELLS:
            made = _outputs(layer, x, masked, backwards=layer.go_backwards)
            x = _merged(made, layer.return_sequences)
        elif kind == "Dense":
            x = _dense(*layer.get_weights())(x)
        elif kind == "Flatten":
            x = keras.ops.reshape(x, (-1, x.shape[1] * x.shape[2]))
    return keras.Model([inputs], x)


def _both(layer: Any, x: Any, masked: Sequence[int]) -> Any:
    sequences = layer.return_sequences
    # Keras has it give zeros where a step does not count, and each of its layers by itself what was before.
    there = _merged(_outputs(layer.forward_layer, x, masked, zeros=sequences), sequences)
    back = _outputs(layer.backward_layer, x, masked, zeros=sequences, backwards=True)
    again = _merged(back[::-1] if sequences else back, sequences)
    if layer.merge_mode == "concat":
        return keras.ops.concatenate([there, again], axis=-1)
    if layer.merge_mode == "mul":
        return there * again
    return (there + again) * (0.5 if layer.merge_mode == "ave" else 1.0)


def _merged(outputs: list[Any], sequences: bool) -> Any:
    return keras.ops.stack(outputs, axis=1) if sequences else outputs[-1]


def _outputs(
    layer: Any, x: Any, masked: Sequence[int], *, zeros: bool = False, backwards: bool = False
) -> list[Any]:
    """Return the outputs in the order in which they are made."""
    config, weights = layer.get_config(), layer.get_weights()
    step, states = _CELLS[type(layer).__name__](config, weights)
    zero = _dense(np.zeros((x.shape[-1], config["units"])))(x[:, 0])
    state, out = [zero] * states, zero
    made = []
    for t in range(x.shape[1])[:: -1 if backwards else 1]:
        if t not in masked:
            state = step(x[:, t], state)
            out = state[0]
        made.append(zero if zeros and t in masked else out)
    return made


def _dense(kernel: Any, bias: Any = None) -> Any:
    layer = keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, dtype=kernel.dtype.name)
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return layer


def _gates(kernel: Any, count: int, bias: Any = None) -> list[Any]:
    biases = [None] * count if bias is None else np.split(bias, count)
    return [_dense(k, b) for k, b in zip(np.split(kernel, count, axis=1), biases, strict=True)]


def _lstm(config: dict[str, Any], weights: list[Any]) -> tuple[Step, int]:
    kernel, recurrent, *bias = weights
    x_i, x_f, x_c, x_o = _gates(kernel, 4, *bias)
    h_i, h_f, h_c, h_o = _gates(recurrent, 4)
    act, gate = (keras.activations.get(config[name]) for name in ("activation", "recurrent_activation"))

    def step(x: Any, state: State) -> State:
        h, c = state
        c = gate(x_f(x) + h_f(h)) * c + gate(x_i(x) + h_i(h)) * act(x_c(x) + h_c(h))
        return [gate(x_o(x) + h_o(h)) * act(c), c]

    return step, 2


def _gru(config: dict[str, Any], weights: list[Any]) -> tuple[Step, int]:
    kernel, recurrent, *bias = weights
    after = config["reset_after"]
    of_x, of_h = ([], []) if not bias else ([bias[0][0]], [bias[0][1]]) if after else (bias, [])
    x_z, x_r, x_n = _gates(kernel, 3, *of_x)
    h_z, h_r, h_n = _gates(recurrent, 3, *of_h)
    act, gate = (keras.activations.get(config[name]) for name in ("activation", "recurrent_activation"))

    def step(x: Any, state: State) -> State:
        [h] = state
        z, r = gate(x_z(x) + h_z(h)), gate(x_r(x) + h_r(h))
        n = act(x_n(x) + (r * h_n(h) if after else h_n(r * h)))
        return [z * h + (1.0 - z) * n]

    return step, 1


def _simple(config: dict[str, Any], weights: list[Any]) -> tuple[Step, int]:
    kernel, recurrent, *bias = weights
    of_x, of_h, act = _dense(kernel, *bias), _dense(recurrent), keras.activations.get(config["activation"])
    return lambda x, state: [act(of_x(x) + of_h(state[0]))], 1


_CELLS: dict[str, Callable[[dict[str, Any], list[Any]], tuple[Step, int]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "SimpleRNN": _simple,
}
