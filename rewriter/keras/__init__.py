"""Keras models: explained as torch models, or made of layers that shap's TensorFlow backend can explain."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewriter.keras.file import load
    from rewriter.keras.keras_layer import to_keras
    from rewriter.keras.stock.decompose import decompose
    from rewriter.keras.torch_module import to_torch

__all__ = ["decompose", "load", "to_keras", "to_torch"]

# Imported at first use, and Keras with it: nobody else needs it.
_PLACES = {
    "decompose": "rewriter.keras.stock.decompose",
    "load": "rewriter.keras.file",
    "to_keras": "rewriter.keras.keras_layer",
    "to_torch": "rewriter.keras.torch_module",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rewriter.keras' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
