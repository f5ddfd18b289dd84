"""What the command ``rewriter`` runs: the application, or how to get what it needs."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = ("typer", "rich")


def main() -> None:
    """Run the command line.

    Example:
        >>> callable(main)
        True

    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"rewriter: the command line needs {' and '.join(missing)}: pip install 'rnn-rewriter[cli]'")
    from rewriter.command_line.application import run

    run()
