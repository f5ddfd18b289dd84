"""Make what Keras' recurrent layers become."""

from __future__ import annotations

from typing import Any

from rewriter.keras.installed import kind_of
from rewriter.keras.layers.contract import Translate, Translation, UnsupportedError
from rewriter.keras.recurrent.cells import cell_parts
from rewriter.keras.recurrent.layer import KerasBidirectional, KerasRecurrent, OverTime
from rewriter.keras.recurrent.states import held_states, is_stateful

#: Layers that work on the last dimension, whatever is before it.
_EVERY_STEP = ("Dense", "Activation", "Dropout", "LayerNormalization", "ReLU", "LeakyReLU", "ELU", "Identity")
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")
_MASKED = (("", "mask"),)


def recurrent_module(layer: Any) -> KerasRecurrent:
    """Return what an ``LSTM``, ``GRU``, ``SimpleRNN`` or ``RNN`` becomes.

    Raises:
        UnsupportedError: for one whose cell is not known, or whose rows have states of their own.

    """
    stacked = kind_of(layer.cell) == "StackedRNNCells"
    cells = layer.cell.cells if stacked else [layer.cell]
    return KerasRecurrent(
        [cell_parts(cell) for cell in cells],
        sequences=layer.return_sequences,
        states=layer.return_state,
        backwards=layer.go_backwards,
        zeros=layer.zero_output_for_mask,
        nested=stacked and len(cells) > 1,
        held=held_states(layer),
        kind=type(layer).__name__,
        name=layer.name,
    )


def recurrent(layer: Any) -> Translation:
    """Translate an ``LSTM``, ``GRU``, ``SimpleRNN`` or ``RNN``."""
    return Translation(recurrent_module(layer), _MASKED, out="kept" if layer.return_sequences else "none")


def bidirectional(layer: Any) -> Translation:
    """Translate a ``Bidirectional``."""
    parts = [layer.forward_layer, layer.backward_layer]
    known = RECURRENT[:-1]
    for each in parts:
        if kind_of(each) not in known:
            raise UnsupportedError(
                f"the layer in it, a {type(each).__name__}, is not one of {', '.join(known)}"
            )
    module = KerasBidirectional(recurrent_module(parts[0]), recurrent_module(parts[1]), layer.merge_mode)
    return Translation(module, _MASKED, out="kept" if layer.return_sequences else "none")


def over_time(layer: Any, translate: Translate) -> Translation:
    """Translate a ``TimeDistributed``.

    Args:
        layer: the layer.
        translate: translates the layer in it.

    """
    if is_stateful(layer.layer):
        raise UnsupportedError(
            "the layer in it is stateful, so that each step begins where the one before ended"
        )
    inner = translate(layer.layer)
    if kind_of(layer.layer) in _EVERY_STEP:
        return Translation(inner.module)
    # Keras hands the mask of the step on to a layer that takes one.
    return Translation(OverTime(inner.module, masked=bool(inner.masks)), _MASKED)
