"""References as a command names them: rows of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from rewriter.command_line.failures import CommandError
from rewriter.command_line.inputs import sizes_of, tensors
from rewriter.jobs.formats import open_table
from rewriter.jobs.tables import reshaped


def shape_of_rows(text: str | None) -> tuple[int, ...] | None:
    """Return the shape of a row.

    Raises:
        CommandError: for what is no list of sizes.

    Example:
        >>> shape_of_rows("50,16"), shape_of_rows(None)
        ((50, 16), None)

    """
    return None if text is None else sizes_of(text, "--reshape")


def references_of(
    model: nn.Module, path: Path, rows: int, reshape: str | None, *, chosen: bool
) -> dict[str, Tensor]:
    """Return references: rows of a file of their own, all finite, or the first finite ones of the data.

    Args:
        model: whose dtype they get.
        path: the file.
        rows: how many of its first rows, at most.
        reshape: shape of a row where the file is flat.
        chosen: the file is one of references; then none may be missing.

    Raises:
        CommandError: naming the first row that is not finite.

    """
    table = open_table(path)
    found = reshaped(table.read(0, min(rows if chosen else 4 * rows, table.rows)), shape_of_rows(reshape))
    finite = np.logical_and.reduce(
        [np.isfinite(each).reshape(len(each), -1).all(1) for each in found.values() if each.dtype.kind == "f"]
        or [np.ones(len(next(iter(found.values()))), bool)]
    )
    if not finite.all() and chosen:
        raise CommandError(
            f"{path}: row {int(np.argmin(finite))} of the background is not finite; give other references"
        )
    if not finite.any():
        raise CommandError(
            f"{path}: none of the first {len(finite)} rows is finite: give references by --background"
        )
    return tensors({name: each[finite][:rows] for name, each in found.items()}, model)
