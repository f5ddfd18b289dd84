"""Who goes on with a folder does what began it, or is refused; what killed runs left is in nobody's way."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter.jobs import manifest
from rewriter.jobs.job import Job, run_job, run_part
from rewriter.jobs.parts import JobError, Parts, locked
from tests.rewriter.jobs.test_jobs import Forecaster, job_of, results

ROWS = 20


@pytest.fixture
def job(tmp_path: Path) -> Job:
    samples = np.random.default_rng(0).normal(size=(ROWS, 4, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    return job_of(tmp_path, size=8)


class Shifted(Forecaster):
    """The same weights and other code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01


def like(model: nn.Module, other: nn.Module) -> nn.Module:
    model.load_state_dict(other.state_dict())
    return model


def test_other_code_for_the_same_weights_is_another_model(tmp_path: Path, job: Job) -> None:
    run_job(job)
    other = job_of(tmp_path, size=8, model=like(Shifted().eval(), job.model))
    with pytest.raises(JobError, match=r"begun by another job \(outputs for the background"):
        run_job(other)
    in_training = job_of(tmp_path, size=8, model=like(Forecaster().train(), job.model))
    with pytest.raises(JobError, match=r"begun by another job \(training: \[\] then"):
        run_job(in_training)


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("float64", 1e-9)])
def test_outputs_may_differ_by_rounding(dtype: str, allowed: float) -> None:
    outputs = np.random.default_rng(0).normal(size=(5000, 2)).astype(dtype)
    then = {"format": 2, "outputs": manifest.answers(outputs)}
    for factor, count in ((1 + allowed / 2, 0), (1 + 3 * allowed, 1)):
        now = {"format": 2, "outputs": manifest.answers((outputs * factor).astype(dtype))}
        assert len(manifest.differences(then, now)) == count


def test_other_data_is_found_wherever_it_differs(tmp_path: Path, job: Job) -> None:
    run_job(job)
    x = np.load(tmp_path / "x.npy")
    x[10, 2, 1] += 1
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(JobError, match=r"begun by another job \(data: "):
        run_job(job_of(tmp_path, size=8))


def test_who_goes_on_works_in_the_memory_of_who_began(tmp_path: Path, job: Job) -> None:
    with mock.patch("rewriter.jobs.job.default_budget", return_value=123_000_000):
        run_job(job)
    began = json.loads((job.folder / "_job.json").read_text())
    assert 0 < began["max_memory"] <= 123_000_000
    assert began["backend"] == job.attributor.explainer.backend
    (job.folder / "part-000001.parquet").unlink()
    again = job_of(tmp_path, size=8)
    assert run_job(again).resumed == 2
    assert again.attributor.explainer._max_memory == int(0.8 * began["max_memory"])
    with pytest.raises(JobError, match="max_memory: "):
        run_job(job_of(tmp_path, size=8, options={"max_memory": 10**8}))


def test_a_worker_takes_what_began_from_who_runs_the_job(tmp_path: Path, job: Job) -> None:
    local = job_of(tmp_path, size=8, folder=tmp_path / "local")
    run_job(local)

    def elsewhere(sent: Job, left: Sequence[int]) -> Iterator[int]:
        # As Ray sends it: by value, without what was worked out.
        worker: Job = pickle.loads(pickle.dumps(dataclasses.replace(sent)))
        with (
            mock.patch("rewriter.jobs.job.fingerprint", side_effect=AssertionError("read through again")),
            mock.patch("rewriter.jobs.job.default_budget", return_value=1),
        ):
            parts = Parts(worker.folder, worker.described())
            for part in left:
                yield run_part(worker, parts, part)
        assert worker.memory == job.memory

    assert run_job(job, run=elsewhere).rows == ROWS
    for name in ("values", "outputs", "base"):
        np.testing.assert_array_equal(results(job.folder)[name], results(local.folder)[name])
    with (tmp_path / "x.npy").open("ab") as file:
        file.write(b"more")
    worker = dataclasses.replace(job, begun=manifest.kept(job.folder))
    with pytest.raises(JobError, match="bytes: "):
        Parts(worker.folder, worker.described())


def test_another_backend_is_refused(tmp_path: Path, job: Job) -> None:
    run_job(job)
    path = job.folder / "_job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "backend": "abacus"}))
    with pytest.raises(JobError, match="backend: abacus then"):
        run_job(job_of(tmp_path, size=8))
    # A worker, too, which may only compare.
    worker = job_of(tmp_path, size=8)
    worker.begun = job.described()
    for part in job.folder.glob("part-*"):
        part.unlink()
    with pytest.raises(JobError, match="backend: abacus then"):
        Parts(worker.folder, worker.described())


def test_a_folder_without_results_is_begun_anew(tmp_path: Path, job: Job) -> None:
    run_job(job)
    for part in job.folder.glob("part-*"):
        part.unlink()
    other = job_of(tmp_path, size=8, background={"x": torch.ones(2, 4, 3)})
    assert run_job(other).resumed == 0
    (job.folder / "part-000001.parquet").unlink()
    (job.folder / "_job.json").write_text('{"format": 2, "wei')
    with pytest.raises(JobError, match="format: damaged then, 2 now"):
        run_job(other)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nearer": {"draws": 2}}, "a single block has no order to draw"),
        ({"nearer": {"cells": "shapley"}, "model": nn.Flatten()}, "no recurrence"),
        ({"background": {"x": torch.zeros(2, 4, 5)}}, "rnn"),
        ({"background": {"x": torch.zeros(2, 7, 3)}}, r"expected rows of shape \(7, 3\)"),
    ],
    ids=["draws", "cells", "background", "length"],
)
def test_what_cannot_be_is_said_before_a_folder_is_made(
    changed: dict[str, Any], said: str, tmp_path: Path, job: Job
) -> None:
    with pytest.raises(RewriteError, match=said):
        run_job(job_of(tmp_path, **changed))
    assert not job.folder.exists()


def test_a_file_of_too_many_rows_is_refused(tmp_path: Path, job: Job) -> None:
    with (
        mock.patch("rewriter.jobs.job._MOST_PARTS", 2),
        pytest.raises(JobError, match="are 3 parts, of 2 at"),
    ):
        run_job(job)


def test_what_killed_runs_left_is_cleared(job: Job) -> None:
    job.folder.mkdir()
    for name in (".part-000001-x", "._job-x", ".whole-x.npz"):
        (job.folder / name).write_text("half")
    run_job(job)
    assert sorted(each.name for each in job.folder.iterdir() if each.name.startswith((".", "_"))) == [
        ".lock",
        "_job.json",
    ]


def test_killed_while_it_puts_parts_together_it_can_be_run_again(tmp_path: Path, job: Job) -> None:
    out = tmp_path / "v.npz"

    def killed(folder: Path, **_: Any) -> None:
        if folder.exists():
            next(folder.glob("part-*")).unlink()
            raise KeyboardInterrupt

    with mock.patch.object(shutil, "rmtree", killed), pytest.raises(KeyboardInterrupt):
        run_job(job, into=out)
    expected = np.load(out)["values"]
    assert run_job(job, into=out).resumed == 0
    np.testing.assert_array_equal(np.load(out)["values"], expected)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["v.npz", "x.npy"]


def test_parts_are_put_together_while_others_are_kept_out(tmp_path: Path, job: Job) -> None:
    def other(folder: Path, _: Path) -> None:
        with pytest.raises(JobError, match="another run is writing to it"), locked(folder):
            pass

    with mock.patch("rewriter.jobs.job.gather", other):
        run_job(job, into=tmp_path / "v.npz")


def test_nothing_is_written_where_another_run_is(job: Job) -> None:
    with locked(job.folder):
        with pytest.raises(JobError, match="another run is writing to it"):
            run_job(job)
        assert [each.name for each in job.folder.iterdir()] == [".lock"]


def test_a_lock_of_a_folder_that_was_taken_away_holds_nothing(job: Job) -> None:
    plain = fcntl.flock
    taken: list[Path] = []

    def late(file: Any, how: int) -> None:
        plain(file, how)
        if not taken:
            # Whoever was in it ended between the opening and the lock.
            taken.append(job.folder.rename(job.folder.with_name("away")))

    with mock.patch("fcntl.flock", late):
        assert run_job(job).rows == ROWS
    assert taken
    assert not list(taken[0].glob("part-*"))


def test_a_file_in_place_of_the_folder_is_refused(job: Job) -> None:
    job.folder.write_text("precious")
    with pytest.raises(JobError, match="is a file; give a folder"):
        run_job(job)
    assert job.folder.read_text() == "precious"
