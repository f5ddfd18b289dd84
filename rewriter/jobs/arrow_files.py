"""Parquet and Arrow files: columns of numbers, or of arrays of one shape."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.jobs.tables import Array, Arrays, TableError


def pyarrow() -> Any:
    """Return pyarrow, with the parts that are used here.

    Raises:
        ImportError: saying how to get it.

    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet and Arrow files need pyarrow: pip install 'rnn-rewriter[jobs]'") from error
    return pyarrow


class Parquet:
    """A ``.parquet`` file; what is in memory is the row groups that are asked for.

    Args:
        path: the file.

    """

    def __init__(self, path: Path) -> None:
        self._file = pyarrow().parquet.ParquetFile(path)
        groups = self._file.metadata
        self._starts = _starts([groups.row_group(k).num_rows for k in range(groups.num_row_groups)])
        self.rows = groups.num_rows
        self.columns = _columns(path, self._file.schema_arrow)

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``."""
        first, last = _groups(self._starts, start, min(stop, self.rows))
        table = self._file.read_row_groups(range(first, last + 1))
        return _arrays(table.slice(start - self._starts[first], min(stop, self.rows) - start), self.columns)


class Arrow:
    """An ``.arrow`` file (Arrow's IPC file format, Feather's second version), mapped into memory.

    Args:
        path: the file.

    """

    def __init__(self, path: Path) -> None:
        arrow = pyarrow()
        self._file = arrow.ipc.open_file(arrow.memory_map(str(path)))
        count = self._file.num_record_batches
        self._starts = _starts([self._file.get_batch(k).num_rows for k in range(count)])
        self.rows = self._starts[-1]
        self.columns = _columns(path, self._file.schema)

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``."""
        first, last = _groups(self._starts, start, min(stop, self.rows))
        batches = [self._file.get_batch(k) for k in range(first, last + 1)]
        table = pyarrow().Table.from_batches(batches)
        return _arrays(table.slice(start - self._starts[first], min(stop, self.rows) - start), self.columns)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes, dtype=np.int64).tolist()]


def _groups(starts: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    return bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop) - 1


def _columns(path: Path, schema: Any) -> tuple[str, ...] | None:
    """Return the names of the columns if all are numbers: the features of one input; None for arrays."""
    kinds = pyarrow().types
    names: list[str] = []
    arrays: list[str] = []
    for field in schema:
        number = kinds.is_integer(field.type) or kinds.is_floating(field.type) or kinds.is_boolean(field.type)
        (names if number else arrays).append(field.name)
        if not number and not hasattr(field.type, "value_type"):
            raise TableError(f"{path}: {field.name}: expected numbers or arrays of them, got {field.type}")
    if names and arrays:
        raise TableError(
            f"{path}: expected numbers in all columns, or arrays in all, got {names[0]} and {arrays[0]}"
        )
    return tuple(names) or None


def _arrays(table: Any, columns: tuple[str, ...] | None) -> Arrays:
    if columns is not None:
        return {"x": np.stack([_numbers(table.column(name)) for name in columns], 1)}
    return {name: _stacked(name, table.column(name).combine_chunks()) for name in table.column_names}


def _numbers(column: Any) -> Array:
    values: Array = column.to_numpy()
    return values.astype(np.float64) if values.dtype.kind not in "fiub" else values


def _stacked(name: str, column: Any) -> Array:
    if hasattr(column, "to_numpy_ndarray"):
        tensors: Array = column.to_numpy_ndarray()
        return tensors
    rows = [None if each is None else np.array(each, np.float64) for each in column.to_pylist()]
    shapes = {each.shape for each in rows if each is not None}
    if len(shapes) > 1:
        raise TableError(f"{name}: expected arrays of one shape, got {', '.join(map(str, sorted(shapes)))}")
    missing = np.full(next(iter(shapes), ()), np.nan)
    return np.stack([missing if each is None else each for each in rows])
