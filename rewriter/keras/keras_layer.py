"""Keras layers with the weights of torch's recurrent layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from passes.errors import RewriteError
from rewriter.keras.installed import keras_module
from rewriter.keras.recurrent.exchange import arrays, keras_weights, weights_of

_LAYERS = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"}
_CELLS: tuple[tuple[type[nn.RNNCellBase], str], ...] = (
    (nn.LSTMCell, "LSTM"),
    (nn.GRUCell, "GRU"),
    (nn.RNNCell, "RNN"),
)


def to_keras(layer: nn.Module) -> Any:
    """Return the layer of Keras that computes what one of torch's recurrent layers does.

    It takes (B, T, I), whatever ``batch_first`` says, and returns the outputs of all steps and the last
    states, of each direction. Of several layers it is a Functional model of the same. Of a cell it is Keras'
    cell. :func:`rewriter.keras.to_torch` is the way back; Keras has one bias where torch has two that are
    added, but for the GRU.

    Args:
        layer: an ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``, or a cell of them.

    Returns:
        The layer, on the backend that the process uses, with copies of the weights.

    Raises:
        RewriteError: without Keras, for any other module, and for an LSTM with projections.

    Example:
        >>> to_keras(nn.Linear(2, 1))
        Traceback (most recent call last):
        passes.errors.RewriteError: to_keras: expected nn.LSTM, nn.GRU, nn.RNN or a cell of them, got Linear

    """
    mode = next((mode for kind, mode in _CELLS if type(layer) is kind), "")
    if not mode and type(layer) not in (nn.LSTM, nn.GRU, nn.RNN):
        raise RewriteError(
            f"to_keras: expected nn.LSTM, nn.GRU, nn.RNN or a cell of them, got {type(layer).__name__}"
        )
    if getattr(layer, "proj_size", 0):
        raise RewriteError("to_keras: the LSTM has projections, which Keras has no layer for")
    layers = keras_module().layers
    if mode:
        cell = getattr(layers, f"{_LAYERS[mode]}Cell")(layer.hidden_size, **_settings(layer))
        cell.build((None, layer.input_size))
        cell.set_weights(arrays(keras_weights(mode, weights_of(layer))))
        return cell
    assert isinstance(layer, nn.RNNBase)
    if layer.num_layers == 1:
        return _one(layer, 0, layer.input_size)
    return _several(layer)


def _settings(layer: Any) -> dict[str, Any]:
    dtype = str(layer._parameters[next(iter(layer._parameters))].dtype).removeprefix("torch.")
    activation = {"activation": layer.nonlinearity} if hasattr(layer, "nonlinearity") else {}
    return {"use_bias": bool(layer.bias), "dtype": dtype, **activation}


def _one(layer: nn.RNNBase, index: int, size: int) -> Any:
    """Return what one of the layers is, built and with its weights."""
    layers = keras_module().layers
    mode = layer.mode.partition("_")[0]
    made = getattr(layers, _LAYERS[mode])(
        layer.hidden_size, return_sequences=True, return_state=True, **_settings(layer)
    )
    weights = keras_weights(mode, weights_of(layer, index))
    if layer.bidirectional:
        made = layers.Bidirectional(made, dtype=_settings(layer)["dtype"])
        weights += keras_weights(mode, weights_of(layer, index, reverse=True))
    made.build((None, None, size))
    made.set_weights(arrays(weights))
    return made


def _several(layer: nn.RNNBase) -> Any:
    keras = keras_module()
    x = inputs = keras.Input((None, layer.input_size), dtype=_settings(layer)["dtype"])
    states: list[Any] = []
    for index in range(layer.num_layers):
        if index and layer.dropout:
            x = keras.layers.Dropout(layer.dropout)(x)
        x, *finals = _one(layer, index, x.shape[-1])(x)
        states += finals
    return keras.Model(inputs, [x, *states])
