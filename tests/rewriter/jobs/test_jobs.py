"""A job gives every row what the explainer gives it, once, whatever ends its runs."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.dataset
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from rewriter.jobs.job import Job, run_job
from rewriter.jobs.parts import JobError
from rewriter.jobs.whole import gather

Array = np.ndarray[Any, Any]
ROWS = 70


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.fixture
def samples() -> Array:
    return np.random.default_rng(0).normal(size=(ROWS, 4, 3)).astype(np.float32)


@pytest.fixture
def job(tmp_path: Path, samples: Array) -> Job:
    np.save(tmp_path / "x.npy", samples)
    return job_of(tmp_path)


def job_of(home: Path, **changed: Any) -> Job:
    torch.manual_seed(0)
    model, background = Forecaster().eval(), {"x": torch.randn(5, 4, 3)}
    given: dict[str, Any] = {
        "model": model,
        "background": background,
        "data": home / "x.npy",
        "folder": home / "out",
        "shape": None,
        "size": 16,
        "options": {},
    }
    return Job(**(given | changed))


def results(folder: Path) -> dict[str, Array]:
    table = pyarrow.dataset.dataset(folder, format="parquet").to_table().combine_chunks()
    found: dict[str, Array] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        found[name] = (
            column.to_numpy_ndarray()
            if hasattr(column, "to_numpy_ndarray")
            else column.to_numpy(zero_copy_only=False)
        )
    return found


def test_every_row_has_what_the_explainer_gives(job: Job, samples: Array) -> None:
    summary = run_job(job)
    found = results(job.folder)
    explainer = DeepExplainer(job.model, job.background["x"])
    x = torch.from_numpy(samples)
    np.testing.assert_array_equal(found["row"], np.arange(ROWS))
    # Batches of another size sum in another order: float32's rounding.
    np.testing.assert_allclose(found["values"], explainer.shap_values(x), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["outputs"], job.model(x).detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["base"], np.tile(explainer.expected_value, (ROWS, 1)), rtol=0, atol=1e-6)
    assert (summary.rows, summary.failed, summary.resumed) == (ROWS, (), 0)


def test_rows_that_cannot_be_explained_are_named_and_take_no_other_along(
    tmp_path: Path, job: Job, samples: Array
) -> None:
    run_job(job)
    samples[17, 2, 1], samples[69, 0, 0] = np.nan, np.inf
    np.save(tmp_path / "x.npy", samples)
    other = job_of(tmp_path, folder=tmp_path / "other")
    summary = run_job(other)
    assert [row for row, _ in summary.failed] == [17, 69]
    assert "x: nan at (2, 1)" in str(summary)
    found, whole = results(other.folder), results(job.folder)
    good = np.isin(np.arange(ROWS), (17, 69), invert=True)
    assert np.isnan(found["values"][~good]).all()
    np.testing.assert_allclose(found["values"][good], whole["values"][good], rtol=0, atol=1e-6)


class Picky(nn.Module):
    """What has no rule where a number is large."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x).sum((1, 2))
        return torch.stack([y, torch.where(x[:, 0, 0] > 5, (x.detach() ** 2).sum((1, 2)), y)], 1)


def test_a_row_that_does_not_add_up_fails_alone(tmp_path: Path, samples: Array) -> None:
    samples[33, 0, 0] = 9
    np.save(tmp_path / "x.npy", samples)
    summary = run_job(job_of(tmp_path, model=Picky()))
    assert [row for row, _ in summary.failed] == [33]
    assert "detach" in summary.failed[0][1]


def run_forked(job: Job) -> None:
    # Slower, so that there are moments to be killed in between.
    run_job(job, on_rows=lambda _: time.sleep(0.01))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_at_twenty_moments_it_goes_on_as_if_nothing_was(tmp_path: Path, job: Job) -> None:
    undisturbed = job_of(tmp_path, folder=tmp_path / "undisturbed", size=2)
    run_job(undisturbed)
    job.size = 2
    moments, kills = random.Random(0), 0
    context = multiprocessing.get_context("fork")
    while kills < 20:
        child = context.Process(target=run_forked, args=(job,))
        child.start()
        assert child.pid is not None
        child.join(moments.uniform(0.01, 0.3))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        parts = sorted(job.folder.glob("part-*.parquet"))
        if len(parts) > 25:
            # Or too little is left to be killed in.
            for each in moments.sample(parts, 20):
                each.unlink()
    run_job(job)
    found, expected = results(job.folder), results(undisturbed.folder)
    for name in ("row", "values", "outputs", "base"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert not [each for each in job.folder.iterdir() if each.name.startswith(".part")]


def test_a_full_disk_is_said_with_the_rows_and_nothing_is_half_there(job: Job) -> None:
    plain, written = os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    with mock.patch("os.fsync", full), pytest.raises(JobError) as caught:
        run_job(job)
    assert "rows 16 to 31 could not be written: No space left on device" in str(caught.value)
    assert sorted(each.name for each in job.folder.iterdir()) == [".lock", "_job.json", "part-000000.parquet"]
    told: list[int] = []
    assert run_job(job, on_rows=told.append).resumed == 1
    assert told == [16, 32, 48, 64, 70]


def test_two_runs_into_one_folder_are_refused(job: Job) -> None:
    def other(_: int) -> None:
        with pytest.raises(JobError, match="another run is writing to it"):
            run_job(job)

    assert run_job(job, on_rows=other).rows == ROWS


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"size": 8}, "rows_per_part: 16 then, 8 now"),
        ({"model": nn.Flatten()}, "weights"),
        ({"shape": (4, 3)}, "shape: None then"),
    ],
    ids=["size", "model", "shape"],
)
def test_a_folder_of_another_job_is_refused(
    tmp_path: Path, job: Job, changed: dict[str, Any], named: str
) -> None:
    run_job(job)
    before = (job.folder / "_job.json").read_bytes()
    with pytest.raises(JobError, match=f"begun by another job .*{named}"):
        run_job(job_of(tmp_path, **changed))
    assert (job.folder / "_job.json").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path, job: Job) -> None:
    job.folder.mkdir()
    (job.folder / "thesis.txt").write_text("precious")
    with pytest.raises(JobError, match=r"holds thesis.txt and no _job\.json"):
        run_job(job)


def test_rows_of_another_shape_are_refused_with_both(tmp_path: Path, job: Job) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 4, 2), np.float32))
    with pytest.raises(JobError, match=r"expected rows of shape \(4, 3\).*got \(4, 2\)"):
        run_job(job)


def test_inputs_of_other_names_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros((9, 4, 3)), b=np.zeros((9, 4, 3)))
    with pytest.raises(JobError, match="expected x, got a, b"):
        run_job(job_of(tmp_path, data=tmp_path / "x.npz"))


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_parts_become_one_file(tmp_path: Path, job: Job, ending: str) -> None:
    run_job(job)
    expected = results(job.folder)
    out = tmp_path / f"values{ending}"
    gather(job.folder, out)
    assert not job.folder.exists()
    found = dict(np.load(out)) if ending == ".npz" else results(out)
    for name in ("values", "outputs", "base"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_what_a_folder_was_made_by_is_in_it(job: Job) -> None:
    run_job(job)
    told = json.loads((job.folder / "_job.json").read_text())
    assert told["rows"] == ROWS
    assert told["rows_per_part"] == 16
    assert told["versions"]["torch"] == torch.__version__
