"""Parts put together as one file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.jobs.arrow_files import pyarrow
from rewriter.jobs.parts import PARTS, WHOLE, JobError, check_ours, settle

#: Of files that hold all results; what is called otherwise is a folder.
ENDINGS = ".npz", ".parquet"
# Names that nobody gives a folder.
_REFUSED = {*ENDINGS, ".npy", ".csv", ".arrow", ".feather", ".tsv", ".txt", ".json", ".html", ".pt", ".pt2"}


def checked_out(out: Path, sources: Iterable[Path]) -> Path:
    """Return where results may go.

    Args:
        out: a folder, or a file: ``.npz`` or ``.parquet``.
        sources: files that results are made of.

    Raises:
        JobError: for one of the sources, for a file that is no result of a job, and for another ending.

    Example:
        >>> checked_out(Path("values.npy"), [])
        Traceback (most recent call last):
        rewriter.jobs.parts.JobError: values.npy: results are written as .npz or .parquet, or to a folder; give such a name

    """  # noqa: E501
    if not out.name:
        raise JobError(f"'{out}': give the name of a folder, or of a file that ends in .npz or .parquet")
    for each in sources:
        if out.resolve() == each.resolve() or (out.exists() and each.exists() and out.samefile(each)):
            raise JobError(f"{out}: is what results are made of; give another name")
    if out.suffix in ENDINGS:
        if out.is_dir():
            raise JobError(f"{out}: is a folder; give another name")
        if out.exists() and not _is_result(out):
            raise JobError(f"{out}: is there, and no result of this command; remove it, or give another name")
    elif out.suffix.lower() in _REFUSED:
        raise JobError(f"{out}: results are written as .npz or .parquet, or to a folder; give such a name")
    else:
        check_ours(out)
    return out


def _is_result(path: Path) -> bool:
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = {each.removesuffix(".npy") for each in archive.namelist()}
        else:
            names = set(pyarrow().parquet.read_schema(path).names)
    except (zipfile.BadZipFile, pyarrow().ArrowException):
        return False
    return names >= {"outputs", "base", "error"}


def gather(folder: Path, out: Path) -> None:
    """Write the parts of a finished job as one file, and remove the folder.

    Args:
        folder: of the parts, on the file system of the file; nobody else may be in it.
        out: ``.npz`` with the arrays ``values`` (by input), ``outputs``, ``base``, ``error`` and, where
            the data have them, ``feature_names``; or ``.parquet``.

    """
    paths = sorted(folder.glob(PARTS))
    handle, name = tempfile.mkstemp(prefix=WHOLE, suffix=out.suffix, dir=folder)
    os.close(handle)
    (_as_npz if out.suffix == ".npz" else _as_parquet)(paths, Path(name))
    with Path(name).open("rb") as file:
        os.fsync(file.fileno())
    Path(name).replace(out)
    settle(out.parent)
    # At once: half a folder would be none that anybody can go on with.
    clear_gathered(folder)
    folder.rename(_away(folder))
    clear_gathered(folder)


def clear_gathered(folder: Path) -> None:
    """Remove what a run that was killed while it removed a folder has left of it."""
    shutil.rmtree(_away(folder), ignore_errors=True)


def _away(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.lstrip('.')}.gathered")


def _as_parquet(paths: list[Path], out: Path) -> None:
    parquet = pyarrow().parquet
    with parquet.ParquetWriter(out, parquet.read_schema(paths[0])) as writer:
        for path in paths:
            writer.write_table(parquet.read_table(path))


def _as_npz(paths: list[Path], out: Path) -> None:
    tables = [pyarrow().parquet.read_table(path) for path in paths]
    arrays = {
        name: np.concatenate(list(_arrays(tables, name))) for name in tables[0].column_names if name != "row"
    }
    names = (tables[0].schema.metadata or {}).get(b"feature_names")
    if names is not None:
        arrays["feature_names"] = np.array(json.loads(names))
    np.savez(out, allow_pickle=False, **arrays)


def _arrays(tables: list[Any], name: str) -> Iterator[np.ndarray[Any, Any]]:
    for table in tables:
        column = table.column(name).combine_chunks()
        if name == "error":
            yield np.array([each or "" for each in column.to_pylist()])
        elif hasattr(column, "to_numpy_ndarray"):
            yield column.to_numpy_ndarray()
        else:
            yield column.to_numpy(zero_copy_only=False)
