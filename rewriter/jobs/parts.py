"""Results in a folder: a Parquet data set whose parts are there as a whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from passes.errors import RewriteError
from rewriter.jobs.arrow_files import pyarrow
from rewriter.jobs.manifest import MANIFEST, as_text, differences, kept
from rewriter.jobs.tables import Array

_LOCK = ".lock"
# What runs that were killed leave: files that were not whole yet.
WHOLE = ".whole-"
_LEFT = ".part-*", "._job-*", f"{WHOLE}*"
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
    """The folder of a job that has begun.

    Args:
        folder: where the results are.
        job: what the results depend on, as plain data; compared with ``_job.json``.

    Raises:
        JobError: naming what differs from the job that began the folder.

    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self.folder = folder
        began = kept(folder)
        if began is None:
            raise JobError(f"{folder}: holds no {MANIFEST} any more; begin again")
        differs = differences(began, job)
        if differs:
            shown = "; ".join(differs)
            raise JobError(f"{folder}: was begun by another job ({shown}); give another folder, or remove it")

    @classmethod
    def begun(cls, folder: Path, job: Mapping[str, Any]) -> Parts:
        """Begin a folder, or go on with it: to be asked for by who holds it, see :func:`locked`.

        One that another job began, and wrote no results to, is begun anew.

        Raises:
            JobError: as the class, and for a folder with something else in it.

        """
        check_ours(folder)
        began = kept(folder)
        if began is None or (differences(began, job) and not any(folder.glob(PARTS))):
            _write_whole(folder / MANIFEST, as_text(job).encode())
        return cls(folder, job)

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


def check_ours(folder: Path) -> None:
    """Refuse a folder with something else in it.

    Raises:
        JobError: naming what is in it, or that it is none.

    """
    if folder.exists() and not folder.is_dir():
        raise JobError(f"{folder}: is a file; give a folder, or a name that ends in .npz or .parquet")
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    others = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
    if others:
        raise JobError(f"{folder}: holds {others[0]} and no {MANIFEST}; give an empty folder")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep other runs out of it, until this one ends in whatever way.

    Raises:
        JobError: if another run is in it, or something that is not of a job.

    """
    check_ours(folder)
    with _lock_of(folder):
        for pattern in _LEFT:
            for left in folder.glob(pattern):
                left.unlink()
        yield


def _lock_of(folder: Path) -> IO[str]:
    import fcntl

    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a")
        try:
            # The kernel drops it with the process, a killed one, too.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / _LOCK).exists() and os.path.samestat(
                os.fstat(file.fileno()), (folder / _LOCK).stat()
            ):
                return file
        except BlockingIOError:
            file.close()
            raise JobError(f"{folder}: another run is writing to it; wait, or give another folder") from None
        # A run that ended meanwhile took the folder away.
        file.close()


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
    settle(path.parent)


def settle(folder: Path) -> None:
    """Have the new name on disk, too, before anything else is believed to be there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
