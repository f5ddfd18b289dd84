"""Silence what torch's exporter says about itself: nothing that a user could act on."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_TALKATIVE = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be logged, printed or warned about that is not the model's.

    Example:
        >>> with quiet():
        ...     logging.getLogger("onnxscript").warning("heard by nobody")

    """
    # Loggers that are made meanwhile go by the level of those above them.
    names = {"torch", "onnxscript", "onnx_ir", *logging.root.manager.loggerDict}
    loggers = [logging.getLogger(name) for name in names if _TALKATIVE.match(name)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            # Torch calls functions that torch itself has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
