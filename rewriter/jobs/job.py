"""A job: explain all rows of a file, part by part, and go on where an earlier run ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewriter.engine.path.nearness import Nearer
from rewriter.equivalence.provenance import hash_of_weights, versions
from rewriter.explainer.explainer import DeepExplainer
from rewriter.jobs.formats import open_table
from rewriter.jobs.parts import JobError, Parts
from rewriter.jobs.rows import Attributor
from rewriter.jobs.tables import Arrays, fingerprint, reshaped

#: Runs parts: a function that yields what each of them gives, in any order.
Engine = Callable[["Job", Sequence[int]], Iterable["Outcome"]]
_SHOWN = 20


@dataclass(frozen=True)
class Outcome:
    """What came of one part.

    Args:
        part: its number.
        rows: how many rows it has.
        failed: number of a row and why it could not be explained.

    """

    part: int
    rows: int
    failed: tuple[tuple[int, str], ...]


@dataclass
class Job:
    """What is to be done; small, so that it can be sent to other processes.

    Args:
        model: explained as it is.
        background: by input name, or as a tensor for one input.
        data: file of samples.
        folder: where the results go.
        shape: of a row, where the file holds flat ones.
        size: rows of a part; what a run that is killed has to do again is one part at most.
        options: for :class:`rewriter.DeepExplainer`.
        nearer: blocks, segments and more, see :meth:`rewriter.DeepExplainer.shap_values`.

    """

    model: nn.Module
    background: Mapping[str, Tensor]
    data: Path
    folder: Path
    shape: tuple[int, ...] | None
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    nearer: Nearer = field(default_factory=Nearer)

    def described(self) -> dict[str, Any]:
        """Return what the results depend on, as plain data."""
        return {
            "format": 1,
            "data": fingerprint(self.data),
            "rows": open_table(self.data).rows,
            "shape": None if self.shape is None else list(self.shape),
            "rows_per_part": self.size,
            "weights": hash_of_weights(self.model),
            "background": _hash_of(self.background),
            "options": {name: each for name, each in self.options.items() if name != "progress"},
            "nearer": dict(self.nearer),
            "versions": versions(),
        }

    def attributor(self) -> Attributor:
        """Make the explainer of the rows."""
        several = list(self.background.values())
        explainer = DeepExplainer(
            self.model, several if len(several) > 1 else several[0], progress=False, **self.options
        )
        return Attributor(
            explainer,
            tuple(self.background),
            tuple(each.dtype for each in several),
            tuple(tuple(each.shape[1:]) for each in several),
            self.nearer,
        )


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


def run_job(
    job: Job, *, engine: Engine | None = None, on_part: Callable[[Outcome], None] | None = None
) -> Summary:
    """Explain all rows that are not explained yet.

    A part of the results is there as a whole or not at all, so that a run that was killed at any moment
    goes on where it was, with the same results as one that was not. Rows that cannot be read, are not finite,
    or cannot be explained have an ``error`` and NaN in the results; the others do not depend on them.

    Args:
        job: what is to be done.
        engine: what runs the parts; by default this process.
        on_part: is told of each part that is done.

    Returns:
        What it gave.

    Raises:
        JobError: if the folder belongs to another job, another run is in it, or it cannot be written.
        TableError: if the data cannot be read.

    """
    parts = Parts(job.folder, job.described())
    table = open_table(job.data)
    count = -(-table.rows // job.size)
    with parts.locked():
        left = [part for part in range(count) if not parts.done(part)]
        for outcome in (engine or run_here)(job, left):
            if on_part is not None:
                on_part(outcome)
    missing = [part for part in range(count) if not parts.done(part)]
    if missing:
        raise JobError(
            f"{job.folder}: {len(missing)} of {count} parts are not there; run the same command again"
        )
    return Summary(job.folder, table.rows, tuple(failed_rows(job.folder)), count - len(left))


def run_here(job: Job, parts: Sequence[int]) -> Iterator[Outcome]:
    """Run parts in this process, one after the other."""
    if not parts:
        return
    worker = Worker(job)
    for part in parts:
        yield worker.run(part)


class Worker:
    """Explains parts of a job, in this process.

    Args:
        job: what is to be done.

    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._table = open_table(job.data)
        self._parts = Parts(job.folder, job.described())
        self._attributor = job.attributor()

    def run(self, part: int) -> Outcome:
        """Explain a part and write it."""
        first = part * self.job.size
        arrays = self._named(reshaped(self._table.read(first, first + self.job.size), self.job.shape))
        rows = replace(self._attributor.explain(first, arrays), names=self._table.columns)
        self._parts.write(part, rows)
        failed = tuple((first + k, why) for k, why in enumerate(rows.errors) if why is not None)
        return Outcome(part, len(rows.errors), failed)

    def _named(self, arrays: Arrays) -> Arrays:
        """Return arrays by the names of the background's, and see that their shapes are those."""
        names = self._attributor.names
        if set(arrays) != set(names):
            if len(arrays) != len(names) or len(names) > 1:
                raise JobError(f"{self.job.data}: expected {', '.join(names)}, got {', '.join(arrays)}")
            arrays = dict(zip(names, arrays.values(), strict=True))
        for name, shape in zip(names, self._attributor.shapes, strict=True):
            if arrays[name].shape[1:] != shape:
                raise JobError(
                    f"{self.job.data}: {name}: expected rows of shape {shape}, as the background has them, "
                    f"got {arrays[name].shape[1:]}"
                )
        return arrays


def failed_rows(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbers of rows without an explanation, and why, from the results in a folder."""
    from rewriter.jobs.arrow_files import pyarrow

    for path in sorted(folder.glob("part-*.parquet")):
        table = pyarrow().parquet.read_table(path, columns=["row", "error"])
        for row, why in zip(table["row"].to_pylist(), table["error"].to_pylist(), strict=True):
            if why is not None:
                yield row, why


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, each in tensors.items():
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        digest.update(each.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
