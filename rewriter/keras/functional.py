"""The graph of a Keras model, also of a simple one whose class a user wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from passes.errors import RewriteError
from rewriter.keras.installed import is_layer, keras_module


@contextmanager
def calls_forgotten(model: Any) -> Iterator[None]:
    """Let the layers of a model be called on symbolic tensors, and take out of them what that leaves."""
    held = [
        (each, attribute)
        for each in _all_layers(model)
        for attribute in ("_inbound_nodes", "_outbound_nodes")
    ]
    before = [(each, attribute, list(getattr(each, attribute, []))) for each, attribute in held]
    try:
        yield
    finally:
        for each, attribute, nodes in before:
            if hasattr(each, attribute):
                getattr(each, attribute)[:] = nodes


def _all_layers(model: Any) -> list[Any]:
    found = list(model._flatten_layers())
    operations = getattr(model, "operations", [])
    return [*found, *(each for each in operations if not is_layer(each))]


def functional_of(model: Any) -> Any:
    """Return a Functional model of a built one whose class a user wrote, by one symbolic call.

    Raises:
        RewriteError: if its code does more than to call layers and ``keras.ops``.

    """
    keras = keras_module()
    shape = (model.get_build_config() or {}).get("input_shape")
    if not model.built or shape is None:
        raise RewriteError(
            f"{model.name}: the shape of its input is not known, as of a model that was not called yet, or "
            "whose code Keras cannot follow; call it once, or build it of keras.Input and keras.Model"
        )
    if isinstance(shape, dict):
        raise RewriteError(
            f"{model.name}: takes a dictionary; give its inputs in a list, or build it of keras.Input and "
            "keras.Model"
        )
    shapes = shape if isinstance(shape[0], list | tuple) else [shape]
    inputs = [keras.Input(tuple(each[1:])) for each in shapes]
    try:
        outputs = model.call(inputs[0] if len(inputs) == 1 else inputs)
        return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs)
    except Exception as error:
        raise RewriteError(
            f"the code of {type(model).__name__}.call cannot be followed: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}; build it of keras.Input and keras.Model"
        ) from error
