"""LSTM and GRU written by hand in TensorFlow, with the weights of a PyTorch layer.

Every gate is a pair of explicit ``Dense`` layers. That is the form in which shap's TensorFlow backend
explains a recurrent cell correctly (on Keras' own recurrent layers it crashes), so these models say
what the SHAP values of the PyTorch layers should be. They share no code with the rewriter. The tests
use this file as their oracle, the examples as the other column of their tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# shap's other backend is TensorFlow itself, so Keras has to compute with it.
os.environ["KERAS_BACKEND"] = "tensorflow"
# oneDNN rounds in another order, and announces itself; TensorFlow lists the processor's instructions.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import KerasTensor, layers, ops
from torch import Tensor, nn

Linear = Callable[[KerasTensor], KerasTensor]


def cell_state_model(cell: nn.LSTMCell) -> keras.Model:
    """Return the model from ``x``, ``h`` and ``c``, side by side in one row, to the new cell state."""
    joint = keras.Input((cell.input_size + 2 * cell.hidden_size,), dtype=_dtype(cell))
    x, h, c = _columns(joint, cell.input_size, cell.hidden_size, cell.hidden_size)
    _, new_c = lstm_cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)(x, h, c)
    return keras.Model([joint], new_c)


def separate_cell_state_model(cell: nn.LSTMCell) -> keras.Model:
    """Return the model from ``x``, ``h`` and ``c``, three inputs, to the new cell state."""
    sizes = cell.input_size, cell.hidden_size, cell.hidden_size
    x, h, c = (keras.Input((size,), dtype=_dtype(cell)) for size in sizes)
    _, new_c = lstm_cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)(x, h, c)
    return keras.Model([x, h, c], new_c)


def hidden_state_model(cell: nn.GRUCell) -> keras.Model:
    """Return the model from ``x`` and ``h``, side by side in one row, to the new hidden state."""
    joint = keras.Input((cell.input_size + cell.hidden_size,), dtype=_dtype(cell))
    x, h = _columns(joint, cell.input_size, cell.hidden_size)
    return keras.Model([joint], gru_cell(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)(x, h))


def sequence_model(layer: nn.LSTM | nn.GRU, head: nn.Linear, steps: int) -> keras.Model:
    """Return the model from a sequence (B, steps, F) to the ``head`` of the last hidden state.

    Args:
        layer: one layer in one direction.
        head: the Linear behind it.
        steps: number of time steps.

    """
    sequence = keras.Input((steps, layer.input_size), dtype=_dtype(layer))
    weights = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    h = ops.zeros_like(sequence[:, 0, :1]) @ np.zeros((1, layer.hidden_size), _dtype(layer))
    if isinstance(layer, nn.LSTM):
        lstm, c = lstm_cell(*weights), h
        for t in range(steps):
            h, c = lstm(sequence[:, t], h, c)
    else:
        gru = gru_cell(*weights)
        for t in range(steps):
            h = gru(sequence[:, t], h)
    return keras.Model([sequence], dense(head.weight, head.bias)(h))


def lstm_cell(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Callable:
    """Return the function ``(x, h, c) -> (h', c')`` for torch's weights, whose gates are ``i f g o``."""
    fc_ii, fc_if, fc_ig, fc_io = _gates(weight_ih, bias_ih, 4)
    fc_hi, fc_hf, fc_hg, fc_ho = _gates(weight_hh, bias_hh, 4)

    def step(x: KerasTensor, h: KerasTensor, c: KerasTensor) -> tuple[KerasTensor, KerasTensor]:
        i = ops.sigmoid(fc_ii(x) + fc_hi(h))
        f = ops.sigmoid(fc_if(x) + fc_hf(h))
        g = ops.tanh(fc_ig(x) + fc_hg(h))
        o = ops.sigmoid(fc_io(x) + fc_ho(h))
        c = f * c + i * g
        return o * ops.tanh(c), c

    return step


def gru_cell(weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Callable:
    """Return the function ``(x, h) -> h'`` for torch's weights, whose gates are ``r z n``.

    As in torch, and as in Keras with ``reset_after=True``, r acts on what the hidden Linear returns.
    """
    fc_ir, fc_iz, fc_in = _gates(weight_ih, bias_ih, 3)
    fc_hr, fc_hz, fc_hn = _gates(weight_hh, bias_hh, 3)

    def step(x: KerasTensor, h: KerasTensor) -> KerasTensor:
        r = ops.sigmoid(fc_ir(x) + fc_hr(h))
        z = ops.sigmoid(fc_iz(x) + fc_hz(h))
        n = ops.tanh(fc_in(x) + r * fc_hn(h))
        return (1.0 - z) * n + z * h

    return step


def dense(weight: Tensor, bias: Tensor) -> Linear:
    """Return the ``Dense`` layer that computes what a torch Linear with this weight and bias does."""
    layer = layers.Dense(weight.shape[0], dtype=_array(weight).dtype.name)
    layer.build((None, weight.shape[1]))
    layer.set_weights([_array(weight).T, _array(bias)])
    return layer


def _gates(weight: Tensor, bias: Tensor, gates: int) -> list[Linear]:
    return [dense(w, b) for w, b in zip(weight.chunk(gates), bias.chunk(gates), strict=True)]


def _columns(joint: KerasTensor, *sizes: int) -> list[KerasTensor]:
    ends = np.cumsum(sizes)
    return [joint[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _dtype(module: nn.Module) -> str:
    return _array(next(module.parameters())).dtype.name


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
