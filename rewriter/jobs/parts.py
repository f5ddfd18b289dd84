"""Results in a folder: a Parquet data set whose parts are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from passes.errors import RewriteError
from rewriter.jobs.arrow_files import pyarrow
from rewriter.jobs.tables import Array

# Readers of data sets pass over names that begin so.
MANIFEST = "_job.json"
_LOCK = ".lock"
PARTS = "part-[0-9]*.parquet"


class JobError(RewriteError):
    """A job that cannot begin, or that cannot go on."""


@dataclass(frozen=True)
class Rows:
    """Explanations of the rows of one part.

    Args:
        first: number of the first row.
        values: per input, (rows, *shape, *outputs); NaN for a row that could not be explained.
        outputs: what the model gives, (rows, *outputs).
        base: the mean output over the background, (rows, *outputs).
        errors: why a row could not be explained, or None.
        names: of the features, where the file has them.

    """

    first: int
    values: Mapping[str, Array]
    outputs: Array
    base: Array
    errors: tuple[str | None, ...]
    names: tuple[str, ...] | None = None


class Parts:
    """The folder of a job.

    Args:
        folder: is made; one with results of another job is refused.
        job: what the results depend on, as plain data; kept in ``_job.json``.

    Raises:
        JobError: naming what differs from the job that began the folder.

    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / MANIFEST
        if not manifest.exists():
            others = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
            if others:
                raise JobError(f"{folder}: holds {others[0]} and no {MANIFEST}; give an empty folder")
            _write_whole(manifest, json.dumps(job, indent=2).encode())
            return
        began = json.loads(manifest.read_text())
        differs = sorted(name for name in {*began, *job} if began.get(name) != job.get(name))
        if differs:
            shown = "; ".join(f"{name}: {began.get(name)} then, {job.get(name)} now" for name in differs)
            raise JobError(f"{folder}: was begun by another job ({shown}); give another folder, or remove it")

    def path(self, part: int) -> Path:
        """Return where a part is, or will be."""
        return self.folder / f"part-{part:06d}.parquet"

    def done(self, part: int) -> bool:
        """Whether a part is there: then it is whole."""
        return self.path(part).exists()

    def all_done(self) -> set[int]:
        """Return the numbers of the parts that are there."""
        return {int(each.stem.removeprefix("part-")) for each in self.folder.glob(PARTS)}

    def write(self, part: int, rows: Rows) -> None:
        """Write a part: a reader sees it as a whole or not at all, whatever happens meanwhile.

        Raises:
            JobError: with the numbers of the rows, if the disk is full or the folder cannot be written.

        """
        table = as_table(rows)
        sink = pyarrow().BufferOutputStream()
        pyarrow().parquet.write_table(table, sink)
        try:
            _write_whole(self.path(part), sink.getvalue().to_pybytes())
        except OSError as error:
            end = rows.first + len(rows.errors) - 1
            raise JobError(
                f"{self.folder}: rows {rows.first} to {end} could not be written: {error.strerror or error}; "
                "what was written before is kept: mend it and run the same command again"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, until this one ends in whatever way.

        Raises:
            JobError: if another run is in it.

        """
        import fcntl

        with (self.folder / _LOCK).open("a") as file:
            try:
                # The kernel drops it with the process, a killed one, too.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(
                    f"{self.folder}: another run is writing to it; wait, or give another folder"
                ) from None
            for left in self.folder.glob(".part-*"):
                left.unlink()
            yield


def as_table(rows: Rows) -> Any:
    """Return a table of Arrow: ``row``, ``values`` (by input), ``outputs``, ``base``, ``error``.

    Names of features are in the metadata of its schema, as JSON under ``feature_names``.

    Example:
        >>> import pytest; _ = pytest.importorskip("pyarrow")
        >>> one = Rows(0, {"x": np.zeros((1, 3, 2))}, np.zeros((1, 2)), np.zeros((1, 2)), (None,))
        >>> as_table(one).column_names
        ['row', 'values', 'outputs', 'base', 'error']

    """
    arrow = pyarrow()
    count = len(rows.errors)
    columns: dict[str, Any] = {"row": arrow.array(np.arange(rows.first, rows.first + count))}
    for name, values in rows.values.items():
        columns["values" if len(rows.values) == 1 else f"values_{name}"] = _tensors(values)
    columns["outputs"], columns["base"] = _tensors(rows.outputs), _tensors(rows.base)
    columns["error"] = arrow.array(rows.errors, arrow.string())
    told = {} if rows.names is None else {"feature_names": json.dumps(rows.names)}
    return arrow.table(columns, metadata=told or None)


def _tensors(array: Array) -> Any:
    arrow = pyarrow()
    if array.ndim == 1:
        return arrow.array(array)
    if not len(array):
        return arrow.array([], arrow.list_(arrow.float64()))
    return arrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def _write_whole(path: Path, content: bytes) -> None:
    # Beside it: only within a file system one name takes the place of another at once.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(folder: Path) -> None:
    """Have the new name on disk, too, before anything else is believed to be there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
