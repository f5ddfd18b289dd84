"""What must not be said beside an error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Expect nothing on standard output and error, no log record for a user's handler, and no warning."""
    records: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.name}: {record.getMessage()}")

    handler = Notes()
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    capfd.readouterr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    assert capfd.readouterr() == ("", "")
    assert records == []
