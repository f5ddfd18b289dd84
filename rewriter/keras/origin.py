"""The Keras model that a torch module was made of: what it gives, and whether it was changed since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.twin import Twin
from rewriter.keras.installed import keras_module
from rewriter.keras.recurrent.states import has_one_state, state_variables, stateful_layers, states_kept
from rewriter.keras.weights import array_of, tensor_of


def run_model(model: Any, inputs: Sequence[Tensor], graph: Any = None) -> Any:
    """Return what a model of Keras gives, in torch's tensors, in the structure that its torch module returns.

    It does not train, and states of stateful layers are as before.

    Args:
        model: that runs.
        inputs: one for each input, any number of rows.
        graph: a model of the same inputs, with a graph; the model itself, if it has one.

    """
    graph = graph or model
    fixed = graph.inputs[0].shape[0]
    rows = len(inputs[0])
    if fixed is None or fixed == rows:
        return _run(model, inputs, graph)
    parts = []
    for begin in range(0, rows, fixed):
        few = [each[begin : begin + fixed] for each in inputs]
        more = fixed - len(few[0])
        # Rows that are repeated to make a batch of the size that the model is built for.
        filled = [torch.cat([each, each[-1:].expand(more, *each.shape[1:])]) for each in few]
        parts.append(_cut(_run(model, filled, graph), len(few[0])))
    return _joined(parts)


def _run(model: Any, inputs: Sequence[Tensor], graph: Any) -> Any:
    keras = keras_module()
    given = [_given(keras, each) for each in inputs]
    struct = (graph if hasattr(graph, "_inputs_struct") else graph._functional)._inputs_struct
    packed: Any = given if len(given) > 1 or isinstance(struct, list | tuple) else given[0]
    if isinstance(struct, dict):
        # Keras takes dictionaries apart in the order of their keys.
        packed = dict(zip(sorted(struct), given, strict=True))
    with states_kept(model):
        # Of the states a copy: giving them back writes to what may have been returned.
        made = keras.tree.map_structure(lambda each: tensor_of(each).detach().clone(), model(packed))
    return made[0] if isinstance(made, list | tuple) and len(made) == 1 else made


def _given(keras: Any, tensor: Tensor) -> Any:
    if issubclass(keras.layers.Layer, nn.Module):
        return tensor.detach()
    return keras.ops.convert_to_tensor(tensor.detach().cpu().numpy())


def _cut(made: Any, rows: int) -> Any:
    return keras_module().tree.map_structure(lambda each: each[:rows], made)


def _joined(parts: list[Any]) -> Any:
    return keras_module().tree.map_structure(lambda *each: torch.cat(each), *parts)


class Origin:
    """A model of Keras as it was when a torch module was made of it.

    Args:
        model: of Keras.
        graph: a model of the same inputs, with a graph; the model itself, if it has one.
        own_code: it has layers of classes of the user's.

    """

    def __init__(self, model: Any, graph: Any = None, *, own_code: bool = False) -> None:
        self._model, self._graph, self._own_code = model, graph, own_code
        self._layers = list(model._flatten_layers())
        self._settings = [_settings(each) for each in self._layers]
        self._weights = self._copied()

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return what it gives now."""
        # Code of the user's may count its calls.
        model = Twin(self._model).model if self._own_code else self._model
        return run_model(model, inputs, self._graph)

    def is_same(self) -> bool:
        """Whether its layers, what is set in them, and weights that were copied, are as they were."""
        layers = list(self._model._flatten_layers())
        if len(layers) != len(self._layers) or any(
            a is not b for a, b in zip(layers, self._layers, strict=True)
        ):
            return False
        if not all(map(has_one_state, stateful_layers(self._model))):
            return False
        settings = zip(layers, self._settings, strict=True)
        return all(_settings(each) == known for each, known in settings) and all(
            (a == b).all() for a, b in zip(self._copied(), self._weights, strict=True)
        )

    def _copied(self) -> list[Any]:
        """Return the weights, unless a torch module has them in the same memory."""
        if isinstance(self._model, nn.Module):
            return []
        return [array_of(each) for each in (*self._model.variables, *state_variables(self._model))]


def _settings(layer: Any) -> dict[str, Any]:
    """Return what users set in a layer: plain values, and functions."""
    return {
        name: value if isinstance(value, str | int | float | bool | tuple) else id(value)
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and not isinstance(value, dict | list)
    }
