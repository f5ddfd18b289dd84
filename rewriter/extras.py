"""Optional parts of the library: what is missing is said in one form, with the command that brings it."""

from __future__ import annotations

import importlib
from typing import Any

from passes.errors import RewriteError


class MissingExtraError(RewriteError, ImportError):
    """A part was called that needs a package which is not installed; the message has the command for it."""


def optional(name: str, what: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        name: the module.
        what: which part of this library needs it.
        extra: the extra of this library that brings it.

    Raises:
        MissingExtraError: if it is not installed, or cannot be imported.

    Example:
        >>> optional("json", "nothing", "none").__name__
        'json'
        >>> try:
        ...     optional("no_such.part", "report(x)", "shap")
        ... except MissingExtraError as error:
        ...     print(error)
        report(x) needs no_such, which is not installed: pip install 'rnn-rewriter[shap]'

    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "is not installed" if absent else f"cannot be imported ({error})"
        raise MissingExtraError(
            f"{what} needs {package}, which {state}: pip install 'rnn-rewriter[{extra}]'"
        ) from error
