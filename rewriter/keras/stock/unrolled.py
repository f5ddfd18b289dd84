"""Recurrent layers of Keras with every step written out in Keras' own layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.keras.installed import keras_module, kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.layers.dense import unsupported_if_half
from rewriter.keras.stock.cells import Step, dense, step_of

#: What was made for a cell, by its id: its calls share that.
Known = dict[int, tuple[Step, Any]]


def unrolled(layer: Any, x: Any, initial_state: Any = None, mask: Any = None, *, known: Known) -> list[Any]:
    """Return the outputs of a recurrent layer as symbolic tensors, with the states if it returns them.

    Args:
        layer: of one of the kinds in ``rewriter.keras.recurrent.build.RECURRENT``.
        x: symbolic, (B, T, F), of a known length.
        initial_state: as the layer takes it.
        mask: is refused.
        known: what was made for cells; more is put in.

    Raises:
        UnsupportedError: for a length that is not known, a mask, a cell that is not known, or half precision.

    """
    unsupported_if_half(layer)
    if mask is not None:
        raise UnsupportedError(
            "it is called with a mask, by which shap's backend for TensorFlow cannot choose"
        )
    if x.shape[1] is None:
        raise UnsupportedError("the number of its steps is not known; give the Input a shape without None")
    if kind_of(layer) == "Bidirectional":
        return _both(layer, x, initial_state, known)
    outputs, finals = _run(layer, x, initial_state, known)
    out = _sequence(outputs) if layer.return_sequences else outputs[-1]
    return [out, *finals] if layer.return_state else [out]


def _run(layer: Any, x: Any, initial_state: Any, known: Known) -> tuple[list[Any], list[Any]]:
    """Return the outputs in the order in which they are made, and the last states."""
    if layer.stateful:
        raise UnsupportedError("it is stateful; set layer.stateful = False, so that each row begins at zero")
    cells = layer.cell.cells if kind_of(layer.cell) == "StackedRNNCells" else [layer.cell]
    if len(cells) > 1 and initial_state is not None:
        raise UnsupportedError("its stacked cells are given initial states")
    first = x[:, 0]
    for k, cell in enumerate(cells):
        if id(cell) not in known:
            step = step_of(cell, f"{layer.name}_{k}" if k else layer.name)
            known[id(cell)] = step, _zeros(first, cell, f"{layer.name}_zeros_{k}")
    steps = [known[id(cell)][0] for cell in cells]
    counts = [2 if kind_of(cell) == "LSTMCell" else 1 for cell in cells]
    order = range(x.shape[1])
    states = [[known[id(cell)][1](first)] * count for cell, count in zip(cells, counts, strict=True)]
    if initial_state is not None:
        states = [list(initial_state) if isinstance(initial_state, list | tuple) else [initial_state]]
    outputs = []
    for t in reversed(order) if layer.go_backwards else order:
        out = x[:, t]
        for k, step in enumerate(steps):
            states[k] = step(out, states[k])
            out = states[k][0]
        outputs.append(out)
    return outputs, [each for state in states for each in state]


def _zeros(x: Any, cell: Any, name: str) -> Any:
    """Return what makes zeros for each row: a constant has no rows yet."""
    return dense(np.zeros((x.shape[-1], cell.units), str(cell.compute_dtype)), None, name)


def _sequence(outputs: Sequence[Any]) -> Any:
    return keras_module().ops.stack(list(outputs), axis=1)


def _both(layer: Any, x: Any, initial_state: Any, known: Known) -> list[Any]:
    half = None if initial_state is None else len(initial_state) // 2
    parts = [layer.forward_layer, layer.backward_layer]
    given = [initial_state and initial_state[:half], initial_state and initial_state[half:]]
    (a, a_states), (b, b_states) = (
        _run(part, x, state, known) for part, state in zip(parts, given, strict=True)
    )
    merged = _merged(
        layer.merge_mode,
        _sequence(a) if layer.return_sequences else a[-1],
        _sequence(b[::-1]) if layer.return_sequences else b[-1],
    )
    return [*merged, *a_states, *b_states] if layer.return_state else merged


def _merged(mode: str | None, a: Any, b: Any) -> list[Any]:
    if mode == "concat":
        return [keras_module().ops.concatenate([a, b], axis=-1)]
    if mode is None:
        return [a, b]
    return [a * b if mode == "mul" else (a + b) / 2 if mode == "ave" else a + b]
