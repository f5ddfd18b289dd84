"""Parts of a job on many processes or machines, by Ray Data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.errors import RewriteError
from rewriter.jobs.job import Job, Outcome, Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewriter.jobs.tables import Array

_NEEDED = "jobs on Ray need it: pip install 'rnn-rewriter[ray]'"


def ray_data() -> Any:
    """Return Ray's library for data.

    Raises:
        ImportError: saying how to get it.

    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    return ray.data


def run_on_ray(job: Job, parts: Sequence[int], *, workers: int | None = None) -> Iterator[Outcome]:
    """Run parts on actors of Ray, each of which holds one explainer.

    The model and the background are put into the object store once. A part that an actor was killed in is run
    again by another; its result is there as a whole or not at all.

    Args:
        job: what is to be done; data and folder must be reachable from all machines.
        parts: their numbers.
        workers: number of actors; as many as there are processors by default.

    """
    import ray

    data = ray_data()
    if not parts:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    absolute = dataclasses.replace(job, data=job.data.resolve(), folder=job.folder.resolve())
    kept = ray.put(absolute)
    rows = data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = rows.map_batches(
        _Runs,
        fn_constructor_kwargs={"job": kept},
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(count, len(parts))),
        num_cpus=1,
    )
    for each in done.iter_rows():
        failed = tuple(zip(each["failed"].tolist(), each["errors"].tolist(), strict=True))
        yield Outcome(int(each["part"]), int(each["rows"]), failed)


class _Runs:
    """An actor: explains parts and writes them."""

    def __init__(self, job: Any) -> None:
        import ray
        import torch

        # One processor for each actor: more threads would only wait for one another.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.worker = Worker(ray.get(job) if isinstance(job, ray.ObjectRef) else job)

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        done = [self.worker.run(int(part)) for part in batch["part"]]
        return {
            "part": np.array([each.part for each in done]),
            "rows": np.array([each.rows for each in done]),
            "failed": [np.array([row for row, _ in each.failed], np.int64) for each in done],
            "errors": [np.array([why for _, why in each.failed], object) for each in done],
        }


class Attributor:
    """SHAP values of the batches of a Ray ``Dataset``, for ``map_batches``.

    Args:
        model: the model, or a reference to it in the object store, where it is once for all actors.
        background: an array or a tensor of references, or a reference to it.
        column: of the samples.
        options: for :class:`rewriter.DeepExplainer`.

    Example:
        A ``Dataset`` with a column ``x`` gets the columns ``values``, ``outputs`` and ``base``::

            samples.map_batches(
                Attributor,
                fn_constructor_args=(ray.put(model), ray.put(background)),
                compute=ray.data.ActorPoolStrategy(size=8),
            )

    """

    def __init__(self, model: Any, background: Any, *, column: str = "x", **options: Any) -> None:
        import ray
        import torch

        from rewriter.explainer.explainer import DeepExplainer
        from rewriter.jobs.rows import Attributor as OfRows

        model, background = (
            ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in (model, background)
        )
        references = torch.as_tensor(np.asarray(background))
        self._column = column
        self._rows = OfRows(
            DeepExplainer(model, references, progress=False, **options),
            (column,),
            (references.dtype,),
            (tuple(references.shape[1:]),),
        )

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        """Return a batch with its values; a row without has NaN, and says why in ``error``.

        Raises:
            RewriteError: if the batch has no such column.

        """
        if self._column not in batch:
            raise RewriteError(f"{self._column}: no such column; got {', '.join(batch)}")
        rows = self._rows.explain(0, {self._column: np.asarray(batch[self._column])})
        return {
            **batch,
            "values": rows.values[self._column],
            "outputs": rows.outputs,
            "base": rows.base,
            "error": np.array([each or "" for each in rows.errors]),
        }
