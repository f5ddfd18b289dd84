"""Tables as text: a line of names, then numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from rewriter.jobs.tables import Array, Arrays, TableError

# Rows between places that are remembered: eight bytes for each of them is all that grows with the file.
_APART = 1024


class Csv:
    """A ``.csv`` file with a line of names.

    Args:
        path: the file, in UTF-8.

    Raises:
        TableError: for a file without names, or with one of them twice.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            names = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
            self._places = [file.tell()]
            count = 0
            while line := file.readline():
                count += bool(line.strip())
                if not count % _APART and line.strip():
                    self._places.append(file.tell())
        if not names or len(set(names)) != len(names) or all(_is_number(each) for each in names):
            raise TableError(f"{path}: expected a first line of different names of columns, got {names[:5]}")
        self.rows, self.columns = count, tuple(each.strip() for each in names)

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``; a row that is not as many numbers is NaN."""
        assert self.columns is not None
        stop = min(stop, self.rows)
        with self.path.open("rb") as file:
            file.seek(self._places[start // _APART])
            lines = (line.decode("utf-8", "replace") for line in file if line.strip())
            skipped = start % _APART
            wanted = [line for _, line in zip(range(skipped + stop - start), lines, strict=False)][skipped:]
        try:
            # In C, for a table as it should be.
            rows = np.loadtxt(wanted, delimiter=",", ndmin=2, dtype=np.float64, comments=None)
        except ValueError:
            rows = None
        if rows is None or rows.shape != (stop - start, len(self.columns)):
            rows = np.stack([_row(line, len(self.columns)) for line in wanted])
        return {"x": rows}


def _row(line: str, count: int) -> Array:
    cells = next(csv.reader([line]))
    if len(cells) != count:
        return np.full(count, np.nan)
    return np.array([float(each) if _is_number(each) else np.nan for each in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
