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


def gather(folder: Path, out: Path) -> None:
    """Write the parts of a finished job as one file, and remove the folder.

    Args:
        folder: of the parts.
        out: ``.npz`` with the arrays ``values`` (by input), ``outputs``, ``base``, ``error`` and, where
            the data have them, ``feature_names``; or ``.parquet``.

    """
    paths = sorted(folder.glob("part-*.parquet"))
    handle, name = tempfile.mkstemp(prefix=f".{out.stem}-", suffix=out.suffix, dir=out.parent or ".")
    os.close(handle)
    try:
        (_as_npz if out.suffix == ".npz" else _as_parquet)(paths, Path(name))
        Path(name).replace(out)
    finally:
        Path(name).unlink(missing_ok=True)
    shutil.rmtree(folder)


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
