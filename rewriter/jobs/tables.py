"""Samples in files, read by row: a slice at a time, whatever the size of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
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


def open_table(path: Path) -> Table:
    """Open a file of samples.

    Args:
        path: ``.npy`` (M, …), ``.npz`` with an array for each input, ``.csv`` with a line of names and
            numbers, ``.parquet`` or ``.arrow`` with a number or an array of fixed shape in each column.

    Raises:
        TableError: if there is no such file, it is none of these, or it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.zeros((4, 5, 3)))
        ...     table = open_table(Path(folder) / "x.npy")
        ...     table.rows, table.read(1, 3)["x"].shape
        (4, (2, 5, 3))

    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    if path.suffix not in _FORMATS:
        raise TableError(f"{path}: expected {', '.join(_FORMATS)}, got {path.suffix or 'no ending'}")
    try:
        table = _FORMATS[path.suffix](path)
    except (RewriteError, ImportError):
        raise
    except Exception as error:
        raise TableError(
            f"{path}: damaged, or no {path.suffix} file: {type(error).__name__}: {error}"
        ) from error
    if not table.rows:
        raise TableError(f"{path}: holds no rows")
    return table


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


def _numbers(name: str, array: Array) -> Array:
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise TableError(
            f"{name}: expected numbers with rows in dimension 0, got {array.dtype} {array.shape}"
        )
    return array


class _Npy:
    def __init__(self, path: Path) -> None:
        # Mapped: only the pages that are read are in memory. Objects would be pickles.
        self.array = _numbers(str(path), np.load(path, mmap_mode="r", allow_pickle=False))
        self.rows, self.columns = len(self.array), None

    def read(self, start: int, stop: int) -> Arrays:
        return {"x": np.array(self.array[start:stop])}


def _npz(path: Path) -> Table:
    from rewriter.jobs.archives import Npz

    return Npz(path)


def _csv(path: Path) -> Table:
    from rewriter.jobs.csv_files import Csv

    return Csv(path)


def _parquet(path: Path) -> Table:
    from rewriter.jobs.arrow_files import Parquet

    return Parquet(path)


def _arrow(path: Path) -> Table:
    from rewriter.jobs.arrow_files import Arrow

    return Arrow(path)


_FORMATS: Mapping[str, Callable[[Path], Table]] = {
    ".npy": _Npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
