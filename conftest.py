"""Settings for all tests, doctests among them."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from rewriter.engine.sweeps.build_library import FOLDER, REALS, build

# Each example builds and runs a model: a deadline would measure the machine.
hypothesis.settings.register_profile("models", deadline=None, max_examples=40, derandomize=True)
# The models are so small that a second thread costs more than it computes, in programs that tests run, too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
hypothesis.settings.load_profile("models")

# As an installation does, for this processor: the source may have changed since.
FOLDER.mkdir(exist_ok=True)
for real in REALS:
    build(FOLDER, real, torch.backends.cpu.get_cpu_capability())

# They spend their time in torch, TensorFlow and threads, which coverage would run at half the speed.
UNMEASURED = (
    "tests/passes/operations/test_fresh.py",
    "tests/passes/recurrent/test_tensorflow.py",
    "tests/rewriter/explainer/test_threads.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave coverage out where it would cost minutes."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix() in UNMEASURED:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
