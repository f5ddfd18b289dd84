"""Keras' cells written by hand: Dense, activations, products and sums, in Keras' own layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewriter.keras.installed import keras_module, kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.weights import array_of

#: Takes the input of a step and the states, and returns the new states, the output first.
Step = Callable[[Any, Sequence[Any]], list[Any]]


def step_of(cell: Any, name: str) -> Step:
    """Return one step of a cell, whose weights are copied into a Dense for each gate.

    Args:
        cell: an ``LSTMCell``, ``GRUCell`` or ``SimpleRNNCell``, built.
        name: of the layer, for the names of the Dense layers.

    Raises:
        UnsupportedError: for any other cell.

    """
    kind = kind_of(cell)
    if kind not in _STEPS:
        raise UnsupportedError(
            f"its cell, a {type(cell).__name__}, is not one of {', '.join(map(str, _STEPS))}"
        )
    if not cell.built:
        raise UnsupportedError("it has no weights yet: call it once")
    return _STEPS[kind](cell, name)


def dense(kernel: Any, bias: Any, name: str) -> Any:
    """Return the Dense of a kernel and, maybe, a bias."""
    keras = keras_module()
    made = keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, name=name, dtype=str(kernel.dtype))
    made.build((None, kernel.shape[0]))
    made.set_weights([kernel] if bias is None else [kernel, bias])
    return made


def _gates(cell: Any, name: str, gates: str, biases: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the Dense of each gate, of the input and of the state."""
    kernels = [array_of(each) for each in (cell.kernel, cell.recurrent_kernel)]
    made = []
    for source, kernel, bias in zip("ih", kernels, biases, strict=True):
        parts = [slice(k * cell.units, (k + 1) * cell.units) for k in range(len(gates))]
        made.append(
            [
                dense(kernel[:, part], None if bias is None else bias[part], f"{name}_fc_{source}{gate}")
                for gate, part in zip(gates, parts, strict=True)
            ]
        )
    return made[0], made[1]


def _bias(cell: Any) -> Any:
    return array_of(cell.bias) if cell.use_bias else None


def _lstm(cell: Any, name: str) -> Step:
    x_gates, h_gates = _gates(cell, name, "ifco", (_bias(cell), None))

    def step(x: Any, states: Sequence[Any]) -> list[Any]:
        h, c = states
        i, f, g, o = (dx(x) + dh(h) for dx, dh in zip(x_gates, h_gates, strict=True))
        c = cell.recurrent_activation(f) * c + cell.recurrent_activation(i) * cell.activation(g)
        return [cell.recurrent_activation(o) * cell.activation(c), c]

    return step


def _gru(cell: Any, name: str) -> Step:
    bias = _bias(cell)
    after = cell.reset_after
    biases = (None, None) if bias is None else tuple(bias) if after else (bias, None)
    x_gates, h_gates = _gates(cell, name, "zrh", biases)

    def step(x: Any, states: Sequence[Any]) -> list[Any]:
        (h,) = states
        z = cell.recurrent_activation(x_gates[0](x) + h_gates[0](h))
        r = cell.recurrent_activation(x_gates[1](x) + h_gates[1](h))
        n = cell.activation(x_gates[2](x) + (r * h_gates[2](h) if after else h_gates[2](r * h)))
        return [z * h + (1.0 - z) * n]

    return step


def _simple(cell: Any, name: str) -> Step:
    x_gates, h_gates = _gates(cell, name, "h", (_bias(cell), None))

    def step(x: Any, states: Sequence[Any]) -> list[Any]:
        return [cell.activation(x_gates[0](x) + h_gates[0](states[0]))]

    return step


_STEPS: dict[str | None, Callable[[Any, str], Step]] = {
    "LSTMCell": _lstm,
    "GRUCell": _gru,
    "SimpleRNNCell": _simple,
}
