"""A job: explain all rows of a file, part by part, and go on where an earlier run ended."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewriter.engine.path.nearness import Nearer
from rewriter.engine.tiles import default_budget
from rewriter.equivalence.provenance import hash_of_tensors, hash_of_weights, versions
from rewriter.explainer.explainer import DeepExplainer
from rewriter.jobs.arrow_files import pyarrow
from rewriter.jobs.formats import open_table
from rewriter.jobs.manifest import FORMAT, answers, kept
from rewriter.jobs.parts import PARTS, JobError, Parts, check_ours, locked
from rewriter.jobs.rows import Attributor
from rewriter.jobs.tables import Arrays, Table, fingerprint, reshaped
from rewriter.jobs.whole import clear_gathered, gather

_SHOWN = 20
# Files of a folder that anybody can still work with; a file of data may say to have any number of rows.
_MOST_PARTS = 1_000_000


@dataclass
class Job:
    """What is to be done.

    Args:
        model: explained as it is.
        background: by input name, or as a tensor for one input.
        data: file of samples.
        folder: where the results go.
        shape: of a row, where the file holds flat ones.
        size: rows of a part; what a run that is killed has to do again is one part at most.
        options: for :class:`rewriter.DeepExplainer`.
        nearer: blocks, segments and more, see :meth:`rewriter.DeepExplainer.shap_values`.
        begun: what the results depend on, as the process found it that runs the job; for its workers.

    """

    model: nn.Module
    background: Mapping[str, Tensor]
    data: Path
    folder: Path
    shape: tuple[int, ...] | None
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    nearer: Nearer = field(default_factory=Nearer)
    begun: Mapping[str, Any] | None = None

    @cached_property
    def table(self) -> Table:
        """The data, opened once: some formats are read through for it."""
        return open_table(self.data)

    @cached_property
    def memory(self) -> int:
        """Bytes to work in: sums depend on it in their last bit, so whoever goes on takes the same."""
        began = kept(self.folder) or {}
        asked = self.options.get("max_memory")
        if asked is None:
            asked = began.get("max_memory")
        if asked is None:
            # For each of the processes that a machine has room for.
            processes = max(1, (os.cpu_count() or 1) // torch.get_num_threads())
            asked = default_budget(next(iter(self.background.values())).device) // processes
        return int(asked)

    def described(self) -> dict[str, Any]:
        """Return what the results depend on, as plain data."""
        own = {
            "rows": self.table.rows,
            "bytes": self.data.stat().st_size,
            "max_memory": self.memory,
            "backend": self.attributor.explainer.backend,
        }
        if self.begun is not None:
            # Read through, hashed and run by the process that began.
            return {**self.begun, **own}
        return {
            "format": FORMAT,
            "data": fingerprint(self.data),
            "shape": None if self.shape is None else list(self.shape),
            "rows_per_part": self.size,
            "weights": hash_of_weights(self.model),
            "training": [name for name, each in self.model.named_modules() if each.training],
            "outputs": answers(self.attributor.outputs()),
            "inputs": list(self.background),
            "background": hash_of_tensors(self.background.items()),
            "options": {
                name: each for name, each in self.options.items() if name not in ("progress", "max_memory")
            },
            "nearer": dict(self.nearer),
            "versions": versions(),
            **own,
        }

    @cached_property
    def attributor(self) -> Attributor:
        """The explainer of the rows."""
        several = list(self.background.values())
        options = {**self.options, "max_memory": self.memory, "progress": False}
        explainer = DeepExplainer(self.model, several if len(several) > 1 else several[0], **options)
        return Attributor(
            explainer,
            tuple(self.background),
            tuple(each.dtype for each in several),
            tuple(tuple(each.shape[1:]) for each in several),
            self.nearer,
        )

    def check(self) -> None:
        """Try the job on one row, before anything is made for it.

        Raises:
            JobError: if rows of the data do not fit the background, or there are too many parts.
            RewriteError: if the model, the background or the options cannot be explained with.

        """
        count = -(-self.table.rows // self.size)
        if count > _MOST_PARTS:
            raise JobError(
                f"{self.data}: {self.table.rows:,} rows in parts of {self.size:,} are {count:,} parts, of "
                f"{_MOST_PARTS:,} at most; ask for more rows in each (--rows-per-part)"
            )
        named(reshaped(self.table.read(0, 1), self.shape), self)
        self.attributor.check()


@dataclass(frozen=True)
class Summary:
    """What a job gave.

    Args:
        folder: of the results.
        rows: all rows of the data.
        failed: number of a row and why it could not be explained, in order.
        resumed: parts that were there before.

    """

    folder: Path
    rows: int
    failed: tuple[tuple[int, str], ...]
    resumed: int

    def __str__(self) -> str:
        lines = [f"{self.rows - len(self.failed):,} of {self.rows:,} rows explained, in {self.folder}"]
        if self.resumed:
            lines += [f"{self.resumed} parts were there before"]
        lines += [f"row {row}: {why}" for row, why in self.failed[:_SHOWN]]
        if len(self.failed) > _SHOWN:
            lines += [f"… and {len(self.failed) - _SHOWN} more: rows with an error in the data set"]
        return "\n".join(lines)


def run_parts(job: Job, left: Sequence[int]) -> Iterator[int]:
    """Explain parts one after the other in this process; yield the rows of each once it is written."""
    parts = Parts(job.folder, job.described())
    for part in left:
        yield run_part(job, parts, part)


def run_job(
    job: Job,
    *,
    on_rows: Callable[[int], None] | None = None,
    run: Callable[[Job, Sequence[int]], Iterator[int]] = run_parts,
    into: Path | None = None,
) -> Summary:
    """Explain all rows that are not explained yet.

    A part of the results is there as a whole or not at all, so that a run that was killed at any moment
    goes on where it was, with the same results as one that was not. Rows that cannot be read, are not finite,
    or cannot be explained have an ``error`` and NaN in the results; the others do not depend on them.

    Args:
        job: what is to be done.
        on_rows: is told how many rows are done: those of an earlier run, then after each part.
        run: explains parts, and yields the rows of each that is done, in any order.
        into: one file, in place of the folder, see :func:`rewriter.jobs.whole.gather`.

    Returns:
        What it gave.

    Raises:
        JobError: if the folder belongs to another job, another run is in it, or it cannot be written.
        TableError: if the data cannot be read.
        RewriteError: if options cannot hold; then no folder is made.

    """
    check_ours(job.folder)
    job.check()
    rows = job.table.rows
    told = on_rows or (lambda _: None)
    with locked(job.folder):
        if into is not None:
            clear_gathered(job.folder)
        mine = copy.copy(job)
        mine.begun = job.described()
        parts = Parts.begun(job.folder, mine.begun)
        there = parts.all_done()
        left = [part for part in range(-(-rows // job.size)) if part not in there]
        done = rows - sum(min(job.size, rows - part * job.size) for part in left)
        told(done)
        for more in run(mine, left):
            done += more
            told(done)
        summary = Summary(job.folder, rows, tuple(failed_rows(job.folder)), len(there))
        if into is not None:
            gather(job.folder, into)
    return summary


def run_part(job: Job, parts: Parts, part: int) -> int:
    """Explain a part and write it; return its rows."""
    first = part * job.size
    arrays = reshaped(job.table.read(first, first + job.size), job.shape)
    rows = replace(job.attributor.explain(first, named(arrays, job)), names=job.table.columns)
    parts.write(part, rows)
    return len(rows.errors)


def named(arrays: Arrays, job: Job) -> Arrays:
    """Return arrays by the names of the background's, and see that their shapes are those."""
    names = job.attributor.names
    if set(arrays) != set(names):
        if len(arrays) != len(names) or len(names) > 1:
            raise JobError(f"{job.data}: expected {', '.join(names)}, got {', '.join(arrays)}")
        arrays = dict(zip(names, arrays.values(), strict=True))
    for name, shape in zip(names, job.attributor.shapes, strict=True):
        if arrays[name].shape[1:] != shape:
            raise JobError(
                f"{job.data}: {name}: expected rows of shape {shape}, as the background has them, "
                f"got {arrays[name].shape[1:]}"
            )
    return arrays


def failed_rows(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbers of rows without an explanation, and why, from the results in a folder."""
    for path in sorted(folder.glob(PARTS)):
        table = pyarrow().parquet.read_table(path, columns=["row", "error"])
        for row, why in zip(table["row"].to_pylist(), table["error"].to_pylist(), strict=True):
            if why is not None:
                yield row, why
