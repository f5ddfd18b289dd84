"""Samples in files, read by row: a slice at a time, whatever the size of the file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from passes.errors import RewriteError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
# Bytes that are read at once: what a small file unpacks to is bounded by it.
_MOST = 1 << 30


class TableError(RewriteError):
    """A file that cannot be read as samples."""


class Table(Protocol):
    """Samples: arrays by input, the rows in dimension 0."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features, if the file has them."""
        ...

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``; what cannot be read of a row is NaN."""
        ...


def fingerprint(path: Path) -> str:
    """Return SHA-256 of a file, which is read through for it.

    Example:
        >>> len(fingerprint(Path(__file__)))
        64

    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_size(what: str, rows: int, size: int) -> None:
    """Refuse to read more than a gibibyte at once.

    Args:
        what: is read, for the error.
        rows: how many.
        size: bytes of a row.

    Raises:
        TableError: with both sizes.

    Example:
        >>> check_size("x.npz: x", 4, 10**9)
        Traceback (most recent call last):
        rewriter.jobs.tables.TableError: x.npz: x: 4 rows of 1,000,000,000 bytes are more than the 1,073,741,824 that are read at once; ask for fewer rows (--rows-per-part, --rows)

    """  # noqa: E501
    if rows * size > _MOST:
        raise TableError(
            f"{what}: {rows} rows of {size:,} bytes are more than the {_MOST:,} that are read at once; "
            "ask for fewer rows (--rows-per-part, --rows)"
        )


def reshaped(arrays: Mapping[str, Array], shape: tuple[int, ...] | None) -> Arrays:
    """Return rows in another shape.

    Raises:
        TableError: naming both shapes, if the numbers do not fit.

    Example:
        >>> reshaped({"x": np.zeros((4, 6))}, (2, 3))["x"].shape
        (4, 2, 3)

    """
    if shape is None:
        return dict(arrays)
    found = {}
    for name, each in arrays.items():
        if math.prod(each.shape[1:]) != math.prod(shape):
            raise TableError(
                f"{name}: rows of shape {each.shape[1:]} do not fit the shape {shape} that is asked for"
            )
        found[name] = each.reshape(len(each), *shape)
    return found


def numbers(name: str, array: Array) -> Array:
    """Return an array of numbers with rows.

    Raises:
        TableError: for anything else.

    Example:
        >>> numbers("x", np.zeros(3)).shape
        (3,)

    """
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise TableError(
            f"{name}: expected numbers with rows in dimension 0, got {array.dtype} {array.shape}"
        )
    if not math.prod(array.shape[1:]):
        raise TableError(f"{name}: expected numbers in each row, got the shape {array.shape}")
    return array
