"""Tables as text: a line of names, then numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from rewriter.jobs.tables import Array, Arrays, TableError

# Rows between places that are remembered: eight bytes for each of them is all that grows with the file.
_APART = 1024
_SEVERAL = (
    "a cell in quotes goes on in the next line, which is read as a row of its own; leave such columns out"
)


class Csv:
    """A ``.csv`` file with a line of names, and a row in each further line.

    An empty line is no row, unless there is one column alone: then it is a row whose number is missing.

    Args:
        path: the file, in UTF-8.

    Raises:
        TableError: for a file without names, or with one of them twice, and for a cell of several lines.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            first = file.readline().decode("utf-8-sig")
            if _goes_on(first):
                raise TableError(f"{path}: line 1: {_SEVERAL}")
            names = next(csv.reader([first]), [])
            if not names or len(set(names)) != len(names) or all(_is_number(each) for each in names):
                raise TableError(
                    f"{path}: expected a first line of different names of columns, got {names[:5]}"
                )
            self.columns: tuple[str, ...] | None = tuple(each.strip() for each in names)
            self._alone = len(names) == 1
            self._places = [file.tell()]
            self.rows, number = 0, 1
            while line := file.readline():
                number += 1
                if b'"' in line and _goes_on(line.decode("utf-8", "replace")):
                    raise TableError(f"{path}: line {number}: {_SEVERAL}")
                if not self._is_row(line):
                    continue
                self.rows += 1
                if not self.rows % _APART:
                    self._places.append(file.tell())

    def _is_row(self, line: bytes) -> bool:
        return self._alone or bool(line.strip())

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop``; a row that is not as many numbers is NaN."""
        assert self.columns is not None
        stop = min(stop, self.rows)
        with self.path.open("rb") as file:
            file.seek(self._places[start // _APART])
            lines = (line.decode("utf-8", "replace") for line in file if self._is_row(line))
            skipped = start % _APART
            wanted = [line for _, line in zip(range(skipped + stop - start), lines, strict=False)][skipped:]
        rows = None
        if all(map(str.strip, wanted)):
            try:
                # In C, for a table as it should be; it leaves empty lines out.
                rows = np.loadtxt(wanted, delimiter=",", ndmin=2, dtype=np.float64, comments=None)
            except ValueError:
                rows = None
        if rows is None or rows.shape != (stop - start, len(self.columns)):
            rows = np.stack([_row(line, len(self.columns)) for line in wanted])
        return {"x": rows}


def _goes_on(line: str) -> bool:
    """Whether a cell that began in a line ends in a later one."""
    try:
        next(csv.reader([line], strict=True), None)
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _row(line: str, count: int) -> Array:
    try:
        cells = next(csv.reader([line]))
    except csv.Error:
        cells = []
    if len(cells) != count:
        return np.full(count, np.nan)
    return np.array([float(each) if _is_number(each) else np.nan for each in cells])


def _is_number(cell: str) -> bool:
    # Python's own numbers may have underscores and digits of any script; those of files do not.
    if "_" in cell or not cell.isascii():
        return False
    try:
        float(cell)
    except ValueError:
        return False
    return True
