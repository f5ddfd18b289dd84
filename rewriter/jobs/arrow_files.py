"""Parquet and Arrow files: columns of numbers, or of arrays of one shape."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.extras import optional
from rewriter.jobs.tables import Array, Arrays, TableError

# Rows by which the shape of lists is found.
_LOOKED_AT = 256
# Rows that are unpacked at once on the way to those that are wanted.
_BATCH = 1024


def pyarrow() -> Any:
    """Return pyarrow, with the parts that are used here.

    Raises:
        MissingExtraError: saying how to get it.

    """
    for part in ("pyarrow.ipc", "pyarrow.parquet"):
        optional(part, "a Parquet or Arrow file", "jobs")
    return optional("pyarrow", "a Parquet or Arrow file", "jobs")


class Parquet:
    """A ``.parquet`` file; what is in memory is the rows that are asked for, and pages that they are in.

    Args:
        path: the file.

    Raises:
        TableError: for columns of anything but numbers and arrays of them.

    """

    def __init__(self, path: Path) -> None:
        self._file = pyarrow().parquet.ParquetFile(path, page_checksum_verification=True)
        groups = self._file.metadata
        self._starts = _starts([groups.row_group(k).num_rows for k in range(groups.num_row_groups)])
        self.rows = self._starts[-1]
        self.columns = _columns(path, self._file.schema_arrow)
        self._shapes = _shapes(path, self._file.schema_arrow, self.columns, self._heads())

    def _heads(self) -> Iterator[Any]:
        for group in range(len(self._starts) - 1):
            rows = min(_LOOKED_AT, self._starts[group + 1] - self._starts[group])
            table = self._of_group(group, 0, rows)
            if table is not None:
                yield table

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``; rows that are damaged, or of another shape, are NaN."""
        stop = min(stop, self.rows)
        first, last = _groups(self._starts, start, stop)
        parts = []
        for group in range(first, last + 1):
            begin, end = (
                min(max(each, self._starts[group]), self._starts[group + 1]) for each in (start, stop)
            )
            table = self._of_group(group, begin - self._starts[group], end - self._starts[group])
            parts.append(
                {name: np.full((end - begin, *shape), np.nan) for name, shape in self._shapes.items()}
                if table is None
                else _arrays(table, self.columns, self._shapes)
            )
        return {name: np.concatenate([each[name] for each in parts]) for name in self._shapes}

    def _of_group(self, group: int, start: int, stop: int) -> Any:
        """Return rows of one row group, or None if they are damaged."""
        arrow, found, place = pyarrow(), [], 0
        try:
            for batch in self._file.iter_batches(max(1, min(stop, _BATCH)), row_groups=[group]):
                found.append(batch.slice(max(0, start - place), max(0, stop - max(start, place))))
                place += batch.num_rows
                if place >= stop:
                    break
            table = arrow.Table.from_batches(found, self._file.schema_arrow)
        except (arrow.ArrowException, OSError):
            return None
        return table if table.num_rows == stop - start else None


class Arrow:
    """An ``.arrow`` file (Arrow's IPC file format, Feather's second version), mapped into memory.

    Args:
        path: the file.

    Raises:
        TableError: for columns of anything but numbers and arrays of them.

    """

    def __init__(self, path: Path) -> None:
        arrow = pyarrow()
        self._file = arrow.ipc.open_file(arrow.memory_map(str(path)))
        count = self._file.num_record_batches
        self._starts = _starts([self._file.get_batch(k).num_rows for k in range(count)])
        self.rows = self._starts[-1]
        self.columns = _columns(path, self._file.schema)
        heads = (arrow.Table.from_batches([self._file.get_batch(k)])[:_LOOKED_AT] for k in range(count))
        self._shapes = _shapes(path, self._file.schema, self.columns, heads)

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``; rows of another shape are NaN."""
        first, last = _groups(self._starts, start, min(stop, self.rows))
        batches = [self._file.get_batch(k) for k in range(first, last + 1)]
        table = pyarrow().Table.from_batches(batches)
        rows = table.slice(start - self._starts[first], min(stop, self.rows) - start)
        return _arrays(rows, self.columns, self._shapes)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes, dtype=np.int64).tolist()]


def _groups(starts: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    return bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop) - 1


def _columns(path: Path, schema: Any) -> tuple[str, ...] | None:
    """Return the names of the columns if all are numbers: the features of one input; None for arrays."""
    names: list[str] = []
    arrays: list[str] = []
    for field in schema:
        kind, depth = _element(field.type)
        (arrays if depth else names).append(field.name)
        if not _is_number(kind):
            raise TableError(f"{path}: {field.name}: expected numbers or arrays of them, got {field.type}")
    if names and arrays:
        raise TableError(
            f"{path}: expected numbers in all columns, or arrays in all, got {names[0]} and {arrays[0]}"
        )
    return tuple(names) or None


def _element(kind: Any) -> tuple[Any, int]:
    """Return of what lists of lists are in the end, and how many are in each other."""
    kinds, depth = pyarrow().types, 0
    if isinstance(kind, pyarrow().FixedShapeTensorType):
        return kind.value_type, len(kind.shape)
    while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return kind, depth


def _is_number(kind: Any) -> bool:
    kinds = pyarrow().types
    found: bool = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)
    return found


def _shapes(
    path: Path, schema: Any, columns: tuple[str, ...] | None, heads: Iterable[Any]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of a row by input: what most of the first rows have that can be read."""
    if columns is not None:
        return {"x": (len(columns),)}
    shapes: dict[str, tuple[int, ...]] = {
        field.name: tuple(field.type.shape)
        for field in schema
        if isinstance(field.type, pyarrow().FixedShapeTensorType)
    }
    for table in heads:
        for name in set(table.column_names) - set(shapes):
            depth = _element(table.schema.field(name).type)[1]
            rows = [_row(each, depth) for each in table.column(name).to_pylist()]
            found = Counter(each.shape for each in rows if each is not None)
            if found:
                shapes[name] = found.most_common(1)[0][0]
        if len(shapes) == len(schema):
            break
    for name in schema.names:
        if name not in shapes:
            raise TableError(f"{path}: {name}: damaged: no row of it can be read")
    return {name: shapes[name] for name in schema.names}


def _arrays(table: Any, columns: tuple[str, ...] | None, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    if columns is not None:
        return {"x": np.stack([_numbers(table.column(name)) for name in columns], 1)}
    return {name: _stacked(table.column(name).combine_chunks(), shape) for name, shape in shapes.items()}


def _numbers(column: Any) -> Array:
    values: Array = column.to_numpy()
    return values.astype(np.float64) if values.dtype.kind not in "fiub" else values


def _stacked(column: Any, shape: tuple[int, ...]) -> Array:
    """Return the rows of a column of arrays; what is missing in them, and rows of another shape, is NaN."""
    tensors = hasattr(column, "to_numpy_ndarray")
    if tensors and not (column.null_count or column.storage.flatten().null_count):
        whole: Array = column.to_numpy_ndarray()
        return whole
    depth = 1 if tensors else len(shape)
    rows = [_row(each, depth) for each in column.to_pylist()]
    if tensors:
        rows = [None if each is None else each.reshape(shape) for each in rows]
    missing = np.full(shape, np.nan)
    return np.stack([missing if each is None or each.shape != shape else each for each in rows])


def _row(values: Any, depth: int) -> Array | None:
    """Return a row of lists as an array, or None for one that is missing or ragged."""
    try:
        # A number that is missing is NaN.
        row = np.array(values, np.float64)
    except (TypeError, ValueError):
        return None
    return row if row.ndim == depth else None
