"""Write the recurrent layers of a Keras model out, for shap's DeepExplainer on TensorFlow."""

from __future__ import annotations

import importlib.util
from typing import Any

from passes.errors import Decline, DeclinedError, RewriteError
from rewriter.keras.functional import calls_forgotten, functional_of
from rewriter.keras.installed import backend, is_layer, keras_module, kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.model import is_graph
from rewriter.keras.recurrent.build import RECURRENT
from rewriter.keras.stock.trial import why_not_explained
from rewriter.keras.stock.unrolled import Known, unrolled

_ADVICE = (
    "Take rewriter.DeepExplainer(rewriter.keras.to_torch(model), background), which explains these layers, "
    "too; or pass strict=False to have the model with them in it."
)


def decompose(model: Any, *, strict: bool = True) -> Any:
    """Return a Keras model of Dense layers, activations, products and sums in the place of recurrent layers.

    Stock ``shap.DeepExplainer`` fails on each of Keras' recurrent layers on TensorFlow, and explains what
    this returns. The number of steps has to be known. Gates have a Dense each, ``lstm_fc_ii``,
    ``lstm_fc_hi``, …, with copies of their weights, which all steps share; other layers are the model's own.

    Args:
        model: Sequential, Functional, or of a class of the user's that calls layers and ``keras.ops``; built.
        strict: raise for recurrent layers that cannot be written out, and other layers that shap fails on.

    Returns:
        A ``keras.Model`` with the inputs and outputs of the model.

    Raises:
        RewriteError: for what is no model of Keras, or one whose code cannot be followed.
        DeclinedError: with ``strict``, listing the layers that shap cannot explain; always, those that are
            recurrent and cannot be written out.

    Example:
        >>> decompose("a model")
        Traceback (most recent call last):
        passes.errors.RewriteError: decompose: expected a model of Keras, got str

    """
    if not is_layer(model) or not isinstance(model, keras_module().Model):
        raise RewriteError(f"decompose: expected a model of Keras, got {type(model).__name__}")
    keras = keras_module()
    with calls_forgotten(model):
        functional = model if is_graph(model) else functional_of(model)
        functional = functional._functional if kind_of(functional) == "Sequential" else functional
        writer = _Writer(trials=strict and backend() == "tensorflow" and _has_shap())
        inputs = [
            keras.Input(tuple(each.shape[1:]), dtype=each.dtype, name=each.name)
            for each in functional._inputs
        ]
        outputs = writer.model(functional, inputs)
        if writer.declines:
            raise DeclinedError(tuple(writer.declines), _ADVICE)
        struct = keras.tree.pack_sequence_as(functional._outputs_struct, outputs)
        given = keras.tree.pack_sequence_as(functional._inputs_struct, inputs)
        return keras.Model(given, struct)


def _has_shap() -> bool:
    return importlib.util.find_spec("shap") is not None


class _Writer:
    def __init__(self, *, trials: bool) -> None:
        self.trials = trials
        self.tried: set[int] = set()
        self.known: Known = {}
        self.declines: list[Decline] = []

    def model(self, functional: Any, inputs: list[Any]) -> list[Any]:
        """Call all layers of a model once more, recurrent ones step by step."""
        values = {id(each): own for each, own in zip(functional._inputs, inputs, strict=True)}
        for depth in sorted(functional._nodes_by_depth, reverse=True):
            for node in functional._nodes_by_depth[depth]:
                known = all(id(each) in values for each in node.arguments.keras_tensors)
                if node.operation is None or node.is_input or not known:
                    continue
                made = self._called(node, values)
                values.update((id(each), own) for each, own in zip(node.outputs, made, strict=False))
        return [values[id(each)] for each in functional._outputs if id(each) in values]

    def _called(self, node: Any, values: dict[int, Any]) -> list[Any]:
        op = node.operation
        args, kwargs = node.arguments.fill_in(values)
        if is_layer(op) and is_graph(op):
            inner = op._functional if kind_of(op) == "Sequential" else op
            return self.model(inner, [values[id(each)] for each in node.arguments.keras_tensors])
        if kind_of(op) in RECURRENT and is_layer(op):
            try:
                kwargs = {key: each for key, each in kwargs.items() if key != "training" and each is not None}
                return unrolled(op, *args, **kwargs, known=self.known)
            except UnsupportedError as error:
                self.declines.append(Decline(op.name, type(op).__name__, str(error)))
                return []
        if self.trials and is_layer(op) and id(op) not in self.tried:
            self.tried.add(id(op))
            why = why_not_explained(op, args[0])
            if why is not None:
                self.declines.append(Decline(op.name, type(op).__name__, why))
        return list(keras_module().tree.flatten(op(*args, **kwargs)))
