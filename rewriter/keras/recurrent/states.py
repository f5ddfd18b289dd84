"""The states that stateful layers keep from one batch to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from passes.errors import Decline
from rewriter.keras.installed import keras_module, kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.weights import array_of, tensor_of

MOVES = (
    "it is stateful: each call moves its state, which no rewritten model does; rewriter.DeepExplainer, "
    "rewriter.diagnose and rewriter.keras.to_torch(model) begin at the state that it has now; or set "
    "layer.stateful = False, so that each row begins at zero"
)


def is_stateful(layer: Any) -> bool:
    """Whether a layer of Keras keeps its state from one batch to the next.

    Example:
        >>> is_stateful(torch.nn.LSTM(2, 1))
        False

    """
    return bool(getattr(layer, "stateful", False)) and hasattr(layer, "reset_state")


def held_states(layer: Any) -> list[Tensor] | None:
    """Return the states, (1, H) each, with which a layer begins its next batch, None for one that keeps none.

    On the torch backend they are views of the layer's own memory.

    Raises:
        UnsupportedError: if rows of a batch begin with states of their own.

    """
    if not is_stateful(layer):
        return None
    variables = keras_module().tree.flatten(layer.states)
    if not variables or any(each is None for each in variables):
        raise UnsupportedError("it has no states yet: call it, or the model, once")
    found = [tensor_of(each).detach() for each in variables]
    if any(bool((each != each[:1]).any()) for each in found):
        raise UnsupportedError(
            "it is stateful, and the rows of its batch have states of their own, so that what a row gives "
            "goes by its place in the batch; call layer.reset_state(), or build the model for one row"
        )
    return [each[:1] for each in found]


def has_one_state(layer: Any) -> bool:
    """Whether all rows of the next batch of a stateful layer begin alike."""
    try:
        held_states(layer)
    except UnsupportedError:
        return False
    return True


def stateful_layers(model: Any) -> list[Any]:
    """Return the stateful layers in a model or layer of Keras."""
    # A Bidirectional says so for the two in it.
    return [each for each in model._flatten_layers() if is_stateful(each) and hasattr(each, "states")]


def state_variables(model: Any) -> list[Any]:
    """Return the variables that hold the states of a model's layers, which may not be among its own."""
    return [
        each
        for layer in stateful_layers(model)
        for each in keras_module().tree.flatten(layer.states)
        if each is not None
    ]


def declines_of(name: str, model: Any) -> list[Decline]:
    """Return the reason against each stateful layer in a model or layer of Keras, by its name."""
    prefix = f"{name}." if name else ""
    return [
        Decline(f"{prefix}{each.name}", type(each).__name__, MOVES)
        for each in stateful_layers(model)
        if type(each).__name__ != "Bidirectional"
    ]


@contextmanager
def states_kept(model: Any) -> Iterator[None]:
    """Give the states of a model back, and what layers of the user's may write to."""
    written = [
        variable
        for layer in model._flatten_layers()
        if kind_of(layer) is None
        for variable in layer.non_trainable_variables
    ]
    variables = [*state_variables(model), *written]
    before = [array_of(each).copy() for each in variables]
    try:
        yield
    finally:
        for variable, numbers in zip(variables, before, strict=True):
            variable.assign(numbers)
