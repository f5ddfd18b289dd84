"""Keras models in files, as torch models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from passes.errors import RewriteError
from rewriter.keras.installed import keras_module
from rewriter.keras.torch_module import to_torch


def load(
    path: str | Path, *, trusted: bool = False, custom_objects: Any = None, check: bool = True
) -> nn.Module:
    """Return the torch model of a ``.keras`` file, which any backend of Keras may have trained.

    Keras itself reads the file, on the backend that the process uses: on torch, if it was not imported yet.

    Args:
        path: of the file.
        trusted: run code that the file holds, as that of Lambda layers; else such a file is refused.
        custom_objects: classes and functions of the user's that the file names, by name.
        check: as for :func:`rewriter.keras.to_torch`.

    Returns:
        What :func:`rewriter.keras.to_torch` makes of the model.

    Raises:
        RewriteError: if there is no such file, Keras cannot read it, or it holds code.
        DeclinedError: as :func:`rewriter.keras.to_torch`.

    Example:
        >>> load("missing.keras")
        Traceback (most recent call last):
        passes.errors.RewriteError: missing.keras: no such file

    """
    if not isinstance(path, str | Path):
        raise RewriteError(f"load: expected the path of a .keras file, got {type(path).__name__}")
    path = Path(path)
    if not path.is_file():
        raise RewriteError(f"{path}: no such file")
    keras = keras_module()
    try:
        model = keras.saving.load_model(path, custom_objects, compile=False, safe_mode=not trusted)
    except Exception as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "lambda" in str(error).lower() and not trusted:
            raise RewriteError(
                f"{path}: holds code, that of a Lambda layer, which loading it would run; pass trusted=True "
                "if you know where the file comes from"
            ) from error
        missing = re.search(r"Could not locate (?:class|function) '(\w+)'", str(error))
        if missing:
            raise RewriteError(
                f"{path}: it names {missing[1]}, which is none of Keras' own; pass "
                f"custom_objects={{'{missing[1]}': {missing[1]}}}"
            ) from error
        raise RewriteError(f"{path}: Keras cannot read it: {type(error).__name__}: {what}") from error
    return to_torch(model, check=check)
