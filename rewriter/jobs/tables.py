"""Samples in files, read by row: a slice at a time, whatever the size of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from passes.errors import RewriteError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
_ENDS = 1 << 20


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
    """Return what tells files apart: the size, and a hash of the first and last mebibyte.

    Example:
        >>> len(fingerprint(Path(__file__)))
        64

    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = path.stat().st_size
        digest.update(str(size).encode() + file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()


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
        if int(np.prod(each.shape[1:])) != int(np.prod(shape)):
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
    return array
