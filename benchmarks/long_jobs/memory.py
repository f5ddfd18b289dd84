"""Peak memory of a job for growing numbers of rows: it must not grow with them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from timing import arguments, publish

ROWS = 2_000, 20_000, 200_000
STEPS, FEATURES = 20, 4


def peak(rows: int) -> dict[str, float]:
    """Explain so many rows in this process; return its peak memory, and what the data take."""
    import numpy as np
    import torch
    from torch import nn

    from rewriter.jobs.job import Job, run_job

    torch.manual_seed(0)
    torch.set_num_threads(1)

    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(FEATURES, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
            return y

    with tempfile.TemporaryDirectory() as home:
        data = Path(home) / "x.npy"
        made = np.lib.format.open_memmap(data, "w+", np.float32, (rows, STEPS, FEATURES))
        numbers = np.random.default_rng(0)
        for start in range(0, rows, 1_000):
            made[start : start + 1_000] = numbers.normal(size=(1_000, STEPS, FEATURES))
        made.flush()
        size = data.stat().st_size
        # What was written is not of the job.
        del made
        job = Job(
            Forecaster().eval(), {"x": torch.randn(4, STEPS, FEATURES)}, data, Path(home) / "out", None, 1024
        )
        run_job(job)
        kept = sum(each.stat().st_size for each in (Path(home) / "out").iterdir())
    return {
        "rows": rows,
        "data_mib": size / 2**20,
        "results_mib": kept / 2**20,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def main() -> None:
    """Measure each number of rows in a process of its own."""
    options = arguments("Peak memory of a job, for growing numbers of rows.")
    sizes = ROWS[:2] if options.quick else ROWS
    runs = [
        json.loads(subprocess.check_output([sys.executable, __file__, str(rows)], text=True, env=os.environ))
        for rows in sizes
    ]
    rows = [
        (
            f"{each['rows']:,}",
            f"{each['data_mib']:.1f}",
            f"{each['results_mib']:.1f}",
            f"{each['peak_mib']:.0f}",
            f"{each['peak_mib'] / runs[0]['peak_mib']:.2f}",
        )
        for each in runs
    ]
    header = ("rows", "data MiB", "results MiB", "peak MiB", "of the first")
    notes = [
        "LSTM of 8 units, 20 steps of 4 features, 4 references, parts of 1,024 rows; peak of the process."
    ]
    publish("long_jobs/memory", options, header, rows, notes, runs)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].isdigit():
        print(json.dumps(peak(int(sys.argv[1]))))
    else:
        main()
