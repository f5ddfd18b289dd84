"""Parts of a job on many processes or machines, by Ray Data."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from passes.errors import RewriteError
from rewriter.extras import optional
from rewriter.jobs.job import Job, run_part
from rewriter.jobs.parts import JobError, Parts
from rewriter.jobs.tables import Array

# So many for each worker that none waits long for the last, and that the driver has few to look after.
_BLOCKS_PER_WORKER = 32


def ray_data() -> Any:
    """Return Ray, with its library for data.

    Raises:
        MissingExtraError: saying how to get it.

    """
    what = "explaining on many processes or machines"
    optional("ray.data", what, "ray")
    return optional("ray", what, "ray")


def run_on_ray(job: Job, left: Sequence[int], workers: int | None = None) -> Iterator[int]:
    """Run parts on actors of Ray, each of which holds one explainer; yield the rows of each part.

    Model and background are put into the object store once. Actors compute with as many threads as this
    process does, so that results are the same to the last bit. Parts that an actor was killed in are run
    again by another; what it had written is not.

    Args:
        job: what is to be done; data and folder must be reachable from all machines.
        left: numbers of the parts.
        workers: number of actors; as many as the processors of the cluster have threads for by default.

    """
    if not left:
        return
    ray = ray_data()
    if not ray.is_initialized():
        # Nothing is sent to anybody unasked.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    threads = torch.get_num_threads()
    most = max((int(each["Resources"].get("CPU", 0)) for each in ray.nodes() if each["Alive"]), default=0)
    if threads > most:
        raise JobError(
            f"an explainer here computes with {threads} threads, and no machine of Ray's has more than "
            f"{most} CPUs; set OMP_NUM_THREADS, or call torch.set_num_threads, to what one has"
        )
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
    absolute = dataclasses.replace(job, data=job.data.resolve(), folder=job.folder.resolve())
    blocks = min(len(left), _BLOCKS_PER_WORKER * count)
    done = ray.data.from_items([{"part": part} for part in left], override_num_blocks=blocks).map_batches(
        _Runs,
        fn_constructor_args=(ray.put(absolute), threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(count, blocks)),
        num_cpus=threads,
    )
    for each in done.iter_rows():
        if each["error"]:
            raise JobError(each["error"])
        yield int(each["rows"])


class _Runs:
    """An actor: explains parts and writes them."""

    def __init__(self, job: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        self._job: Job = ray_data().get(job)
        self._parts: Parts | None = None

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        rows, error = 0, ""
        try:
            if self._parts is None:
                self._parts = Parts(self._job.folder, self._job.described())
            for part in batch["part"].tolist():
                # Written by an actor that was killed before it could say so.
                rows += (
                    self._rows_of(part) if self._parts.done(part) else run_part(self._job, self._parts, part)
                )
        except Exception as caught:
            # Ray would run it again and again, and tell it with the traceback of another process.
            known = isinstance(caught, RewriteError | OSError)
            error = str(caught) if known else f"{type(caught).__name__}: {caught}"
        return {"rows": np.array([rows]), "error": np.array([error])}

    def _rows_of(self, part: int) -> int:
        return min(self._job.size, self._job.table.rows - part * self._job.size)
