"""Parts put together as one file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.jobs.arrow_files import pyarrow
from rewriter.jobs.parts import PARTS, WHOLE, settle


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
