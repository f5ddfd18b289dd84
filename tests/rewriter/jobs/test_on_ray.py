"""On Ray a job gives to the last bit what it gives here, whatever becomes of its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import DeepExplainer
from rewriter.jobs.job import Job, run_job
from rewriter.jobs.on_ray import run_on_ray
from rewriter.jobs.parts import JobError
from rewriter.ray import Attributor
from tests.rewriter.jobs.test_jobs import Forecaster, job_of, results

ray = pytest.importorskip("ray", reason="Ray is large: `make ray` installs it and runs these")
pytestmark = [
    pytest.mark.ray,
    # Ray's own, none of which a user of this package can mend.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ROWS = 70


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def samples() -> Any:
    return np.random.default_rng(0).normal(size=(ROWS, 4, 3)).astype(np.float32)


@pytest.fixture
def job(tmp_path: Path, samples: Any) -> Job:
    samples[33, 2, 1] = np.nan
    np.save(tmp_path / "x.npy", samples)
    return job_of(tmp_path, size=8)


def same(job: Job, other: Job) -> None:
    found, expected = results(job.folder), results(other.folder)
    for name in ("row", "values", "outputs", "base"):
        assert found[name].tobytes() == expected[name].tobytes(), name


def test_results_are_those_of_a_local_run_to_the_last_bit(tmp_path: Path, job: Job) -> None:
    local = job_of(tmp_path, folder=tmp_path / "local", size=8)
    here = run_job(local)
    told: list[int] = []
    there = run_job(job, run=partial(run_on_ray, workers=2), on_rows=told.append)
    assert there.failed == here.failed
    assert [row for row, _ in there.failed] == [33]
    assert (told[0], sorted(told), told[-1]) == (0, told, ROWS)
    same(job, local)
    assert run_job(job, run=run_on_ray).resumed == 9


class Mortal(Forecaster):
    """Kills the first process that explains it, in the middle of its work."""

    def __init__(self, grave: Path, parent: int) -> None:
        super().__init__()
        self.grave, self.parent = grave, parent

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.parent and not self.grave.exists() and len(x) == 8:
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path, job: Job) -> None:
    local = job_of(tmp_path, folder=tmp_path / "local", size=8)
    run_job(local)
    mortal = Mortal(tmp_path / "grave", os.getpid()).eval()
    mortal.load_state_dict(job.model.state_dict())
    job.model = mortal
    assert run_job(job, run=partial(run_on_ray, workers=1)).rows == ROWS
    assert (tmp_path / "grave").exists()
    same(job, local)


def test_an_error_of_a_worker_is_told_once(tmp_path: Path, samples: Any) -> None:
    np.save(tmp_path / "x.npy", samples[:, :, :2])
    with pytest.raises(JobError, match=r"expected rows of shape \(4, 3\).*got \(4, 2\)"):
        run_job(job_of(tmp_path), run=run_on_ray)


def test_attributor_explains_a_dataset(samples: Any) -> None:
    model, background = Forecaster().eval(), torch.randn(5, 4, 3)
    rows = ray.data.from_items([{"id": k, "x": each} for k, each in enumerate(samples)])
    done = rows.map_batches(
        Attributor,
        fn_constructor_args=(ray.put(model), ray.put(background)),
        fn_constructor_kwargs={"nearer": {"blocks": 2, "draws": 2}},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=16,
    )
    found = sorted(done.take_all(), key=lambda row: row["id"])
    expected = DeepExplainer(model, background).shap_values(torch.from_numpy(samples), blocks=2, draws=2)
    got = np.stack([each["values"] for each in found])
    # float32 sums whose order hangs on how rows are batched.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    sums = np.stack([each["outputs"] - each["base"] for each in found])
    np.testing.assert_allclose(got.sum((1, 2)), sums, rtol=0, atol=1e-6)
    assert {each["error"] for each in found} == {""}


def test_attributor_says_what_it_was_not_given() -> None:
    attributor = Attributor(Forecaster().eval(), torch.randn(5, 4, 3))
    with pytest.raises(RewriteError, match="x: no such column; got z"):
        attributor({"z": np.zeros((2, 4, 3))})
    with pytest.raises(RewriteError, match=r"expected rows of shape \(4, 3\).*got \(3, 3\)"):
        attributor({"x": np.zeros((2, 3, 3))})
    with pytest.raises(RewriteError, match=r"expected an nn\.Module, got int"):
        Attributor(3, torch.randn(5, 4, 3))


def test_nn_module_is_what_is_explained() -> None:
    rows = Attributor(nn.Flatten().eval(), torch.zeros(1, 4, 3))({"x": np.ones((2, 4, 3), np.float32)})
    assert rows["values"].sum() == 24


def test_more_threads_than_a_machine_has_are_refused_and_not_waited_for(job: Job) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        with pytest.raises(JobError, match="5 threads, and no machine of Ray's has more than 2"):
            run_job(job, run=run_on_ray)
    finally:
        torch.set_num_threads(threads)


def test_an_attributor_takes_empty_batches_arrays_of_another_dtype_and_no_wrong_options() -> None:
    model, background = Forecaster().eval(), np.zeros((2, 4, 3))
    attributor = Attributor(model, background)
    assert attributor({"x": np.empty((0, 4, 3))})["values"].shape == (0, 4, 3, 2)
    with pytest.raises(RewriteError, match="draws: a single block has no order"):
        Attributor(model, background, nearer={"draws": 2})
