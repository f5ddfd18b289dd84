"""Torch models that compute what Keras models compute."""

from __future__ import annotations

from typing import Any

from torch import nn

from passes.errors import Decline, DeclinedError, RewriteError
from rewriter.keras.agreement import check_agreement
from rewriter.keras.functional import calls_forgotten, functional_of
from rewriter.keras.installed import is_layer, keras_module, kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.layers.table import translation_of
from rewriter.keras.model import ADVICE, graph_of, is_graph
from rewriter.keras.recurrent.build import RECURRENT
from rewriter.keras.recurrent.exchange import torch_layer

_CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")
_RECURRENT = (*RECURRENT, *_CELLS)
_IN_A_MODEL = (
    "In a model, keras.Sequential([keras.Input(shape), layer]), it is translated with all that it does."
)


def to_torch(model: Any, *, check: bool = True) -> nn.Module:
    """Return a torch module that computes what a Keras model or layer computes when it is not trained.

    The model's graph becomes a ``torch.fx.GraphModule`` with one node for each layer, which
    :func:`rewriter.decompose` and the explainers take as they take any model. Keras may run on any backend;
    where it runs on torch the weights are those of the Keras model, in the same memory, else copies.

    A recurrent layer by itself becomes torch's layer of its kind, ``batch_first``, with copies of the
    weights, and one of its cells torch's cell; :func:`rewriter.keras.to_keras` is the way back.

    Args:
        model: a Sequential or Functional model, one of a class of the user's that calls layers and
            ``keras.ops``, or a layer; built. Several inputs become several arguments, in their order.
        check: run both on random numbers and compare.

    Returns:
        The module, in evaluation mode: dropout and noise do nothing, batch statistics are those that the
        model has kept.

    Raises:
        DeclinedError: listing every layer that no torch module is known for.
        RewriteError: for something that is not a layer of Keras, or if the module computes something else.

    Example:
        >>> to_torch("a model")
        Traceback (most recent call last):
        passes.errors.RewriteError: to_torch: expected a model or a layer of Keras, got str

    """
    if not is_layer(model):
        raise RewriteError(f"to_torch: expected a model or a layer of Keras, got {type(model).__name__}")
    keras = keras_module()
    graph = model if is_graph(model) else None
    if graph is not None:
        made: nn.Module = graph_of(model)
    elif isinstance(model, keras.Model):
        with calls_forgotten(model):
            graph = functional_of(model)
            made = graph_of(graph)
    else:
        own = str(kind_of(model))
        try:
            made = torch_layer(model) if own in _RECURRENT else translation_of(model).module.eval()
        except UnsupportedError as error:
            declined = Decline(model.name, type(model).__name__, str(error))
            raise DeclinedError((declined,), _IN_A_MODEL if own in _RECURRENT else ADVICE) from error
    if check and graph is not None:
        check_agreement(model, made, graph)
    return made
