"""Errors of a command in one readable line, and the exit codes that scripts go by."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from passes.errors import RewriteError


class Exit(IntEnum):
    """Exit codes: it holds, it does not, it cannot be asked or done (typer's, too, for wrong options)."""

    HOLDS = 0
    FAILS = 1
    CANNOT = 2


class CommandError(Exception):
    """What a user can mend: an argument, a file, a package that is missing."""


@contextmanager
def told(*, debug: bool) -> Iterator[None]:
    """End the command with one line for an error; with ``debug`` the traceback comes before it.

    Example:
        >>> try:
        ...     with told(debug=False):
        ...         raise CommandError("no such file")
        ... except typer.Exit as ended:
        ...     ended.exit_code
        <Exit.CANNOT: 2>

    """
    try:
        with warnings.catch_warnings():
            # What libraries warn of is about code that the user of a command does not see.
            warnings.simplefilter("default" if debug else "ignore")
            yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, CommandError | RewriteError | OSError | MemoryError)
        said = str(error).strip() or type(error).__name__
        what = said if known else f"{type(error).__name__}: {said}"
        hint = "" if debug or known else " (--debug shows where)"
        print(f"rewriter: {_one_line(what)}{hint}", file=sys.stderr)
        raise typer.Exit(Exit.CANNOT) from None


def _one_line(text: str) -> str:
    return " ".join(text.split())
