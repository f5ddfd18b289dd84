"""The kinds of files that samples are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from passes.errors import RewriteError
from rewriter.jobs.archives import Npz
from rewriter.jobs.arrow_files import Arrow, Parquet
from rewriter.jobs.csv_files import Csv
from rewriter.jobs.tables import Array, Arrays, Table, TableError, check_size, numbers


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
    except RewriteError:
        raise
    except Exception as error:
        raise TableError(
            f"{path}: damaged, or no {path.suffix} file: {type(error).__name__}: {error}"
        ) from error
    if not table.rows:
        raise TableError(f"{path}: holds no rows")
    return table


class _Npy:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows, self.columns = len(self._mapped()), None

    def read(self, start: int, stop: int) -> Arrays:
        array = self._mapped()
        found = array[start:stop]
        check_size(str(self._path), len(found), array[:1].nbytes)
        return {"x": np.array(found)}

    def _mapped(self) -> Array:
        """Return the array anew: pages that were read count as the process's while they are mapped."""
        # Objects would be pickles.
        array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise TableError(f"{self._path}: an archive; its name should end in .npz")
        return numbers(str(self._path), array)


_FORMATS: Mapping[str, Callable[[Path], Table]] = {
    ".npy": _Npy,
    ".npz": Npz,
    ".csv": Csv,
    ".parquet": Parquet,
    ".arrow": Arrow,
}
