"""The same job in this process, on one worker of Ray and on two; ``make ray`` installs what it needs."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import ray
import torch
from timing import arguments, publish
from torch import nn

from rewriter.jobs.job import Job, run_job, run_parts
from rewriter.jobs.on_ray import run_on_ray

ROWS, STEPS, FEATURES, UNITS, REFERENCES, PART = 4_096, 50, 16, 64, 50, 128


class Forecaster(nn.Module):
    """An LSTM with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(FEATURES, UNITS, batch_first=True), nn.Linear(UNITS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Forecast from the last step."""
        y: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


@contextmanager
def new_job(data: Path) -> Iterator[Job]:
    """Begin a job in an empty folder."""
    torch.manual_seed(0)
    background = {"x": torch.randn(REFERENCES, STEPS, FEATURES)}
    with tempfile.TemporaryDirectory() as folder:
        yield Job(Forecaster().eval(), background, data, Path(folder), None, PART)


def timed(data: Path, run: object) -> float:
    """Return the seconds that all rows take."""
    with new_job(data) as job:
        start = time.perf_counter()
        run_job(job, run=run)  # type: ignore[arg-type]
        return time.perf_counter() - start


def main() -> None:
    """Time whole jobs, actors and their explainers among them."""
    options = arguments("One job here, on one worker of Ray and on two.")
    torch.set_num_threads(1)
    rows = ROWS // 16 if options.quick else ROWS
    runs: dict[str, object] = {
        "this process": run_parts,
        "Ray, 1 worker": partial(run_on_ray, workers=1),
        "Ray, 2 workers": partial(run_on_ray, workers=2),
    }
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "x.npy"
        np.save(data, np.random.default_rng(0).normal(size=(rows, STEPS, FEATURES)).astype(np.float32))
        seconds = {name: timed(data, run) for name, run in runs.items()}
    ray.shutdown()
    here = seconds["this process"]
    shown = table(seconds, here, rows)
    notes = [
        f"LSTM of {UNITS} units, {STEPS} steps of {FEATURES} features, {REFERENCES} references, one output, "
        f"{rows:,} rows; one thread each; workers begin within the time."
    ]
    header = ("where", "s", "of this process's", "µs per pair of a row and a reference")
    records = [{"where": name, "seconds": each, "rows": rows} for name, each in seconds.items()]
    publish("long_jobs/workers", options, header, shown, notes, records)


def table(seconds: dict[str, float], here: float, rows: int) -> Sequence[tuple[str, ...]]:
    """Return the rows of the table."""
    pairs = rows * REFERENCES
    return [
        (name, f"{each:.1f}", f"{each / here:.2f}", f"{1e6 * each / pairs:.0f}")
        for name, each in seconds.items()
    ]


if __name__ == "__main__":
    main()
