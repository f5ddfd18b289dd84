"""Archives of numpy, read as a stream: an array in one is never in memory as a whole."""

from __future__ import annotations

import math
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from rewriter.jobs.tables import Array, Arrays, TableError, check_size

# What numpy writes, and how many times smaller each makes numbers at most: the limit of deflate's format.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    #: Where the numbers begin.
    offset: int


def _close(members: dict[str, IO[bytes]], archive: zipfile.ZipFile) -> None:
    for each in members.values():
        each.close()
    archive.close()


class Npz:
    """An ``.npz`` file: an array for each input, all of as many rows.

    Args:
        path: the file; what is compressed in it is read forwards, and rows are best asked for in order.

    Raises:
        TableError: for arrays of objects, in Fortran's order, or of unequal numbers of rows, and for an
            array that says to be larger than what is there of it.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)
        self._members: dict[str, IO[bytes]] = {}
        # An archive stays open as long as one of its members is.
        weakref.finalize(self, _close, self._members, self._archive)
        self._headers: dict[str, _Header] = {}
        for name in self._archive.namelist():
            if name.endswith(".npy"):
                self._open(name.removesuffix(".npy"))
        rows = {name: each.shape[0] for name, each in self._headers.items()}
        if len(set(rows.values())) != 1:
            raise TableError(f"{path}: expected arrays of one number of rows, got {rows}")
        self.rows, self.columns = next(iter(rows.values())), None

    def _open(self, name: str) -> None:
        member = self._members[name] = self._archive.open(f"{name}.npy")
        form: Any = np.lib.format
        first = form.read_magic(member) == (1, 0)
        read = form.read_array_header_1_0 if first else form.read_array_header_2_0
        shape, fortran, dtype = read(member)
        if dtype.kind not in "fiub" or not shape or (fortran and len(shape) > 1):
            what = "Fortran's order; save np.ascontiguousarray(x)" if fortran else f"{dtype} {shape}"
            raise TableError(f"{self.path}: {name}: expected numbers with rows in dimension 0, got {what}")
        if not math.prod(shape[1:]):
            raise TableError(f"{self.path}: {name}: expected numbers in each row, got the shape {shape}")
        header = self._headers[name] = _Header(shape, dtype, member.tell())
        self._check_claims(name, header)

    def _check_claims(self, name: str, header: _Header) -> None:
        info = self._archive.getinfo(f"{name}.npy")
        if info.compress_type not in _RATIOS:
            raise TableError(f"{self.path}: {name}: packed as numpy does not; save by np.savez_compressed")
        claimed = header.offset + math.prod(header.shape) * header.dtype.itemsize
        # The archive may say anything of itself, too, but it is not longer than its file.
        packed = min(info.compress_size, self.path.stat().st_size)
        there = min(info.file_size, _RATIOS[info.compress_type] * packed)
        if claimed > there:
            raise TableError(
                f"{self.path}: {name}: damaged: {header.dtype} {header.shape} takes {claimed:,} bytes, "
                f"of which at most {there:,} are there"
            )

    def read(self, start: int, stop: int) -> Arrays:
        """Return rows ``start`` to ``stop`` of each array."""
        return {name: self._read(name, start, min(stop, self.rows)) for name in self._headers}

    def _read(self, name: str, start: int, stop: int) -> Array:
        shape, dtype, offset = self._headers[name]
        row = math.prod(shape[1:]) * dtype.itemsize
        check_size(f"{self.path}: {name}", stop - start, row)
        member = self._members[name]
        # Backwards it begins anew; zipfile checks sums only of what is read to its end.
        try:
            member.seek(offset + start * row)
            content = member.read((stop - start) * row)
        except (zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise TableError(f"{self.path}: {name}: damaged before row {stop}: {error}") from error
        if len(content) != (stop - start) * row:
            raise TableError(f"{self.path}: {name}: ends before row {stop}; the file was cut")
        return np.frombuffer(content, dtype).reshape(stop - start, *shape[1:]).copy()
