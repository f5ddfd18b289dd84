"""Whether Keras is there, which backend it computes with, and what is a layer of it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from passes.errors import RewriteError

_HOW = (
    "pip install 'rnn-rewriter[keras]' installs it, and rnn-rewriter[tensorflow] its TensorFlow backend, too"
)


def keras_module() -> Any:
    """Return Keras; on torch, if nobody has imported it before and ``KERAS_BACKEND`` names no other backend.

    Raises:
        RewriteError: if it, or its backend, is not installed, or it is older than Keras 3.

    """
    if sys.modules.get("keras") is None:
        named = "KERAS_BACKEND" in os.environ
        os.environ.setdefault("KERAS_BACKEND", "torch")
        try:
            importlib.import_module("keras")
        except ImportError as error:
            raise RewriteError(f"Keras cannot be imported: {error}; {_HOW}") from error
        finally:
            if not named:
                del os.environ["KERAS_BACKEND"]
    keras = sys.modules["keras"]
    version = str(getattr(keras, "__version__", "0"))
    if int(version.partition(".")[0]) < 3:
        raise RewriteError(f"Keras {version} is installed, expected Keras 3 or newer; {_HOW}")
    return keras


def backend() -> str:
    """Return the name of the backend that Keras computes with: ``torch``, ``tensorflow``, ``jax``."""
    return str(keras_module().backend.backend())


def is_layer(value: object) -> bool:
    """Whether something is a layer or a model of Keras, which is not imported for that.

    Example:
        >>> is_layer("a text")
        False

    """
    keras = sys.modules.get("keras")
    layer = getattr(getattr(keras, "layers", None), "Layer", None)
    return isinstance(layer, type) and isinstance(value, layer)


def kind_of(layer: Any) -> str | None:
    """Return the class name of a layer of Keras' own, None for one that a user wrote.

    A class that derives from a layer may compute anything else.
    """
    kind = type(layer)
    return kind.__name__ if kind.__module__.startswith(("keras.src.", "keras.api.")) else None
