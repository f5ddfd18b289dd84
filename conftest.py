"""Settings for all tests, doctests among them."""

import os

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Give data that a test module makes when it is imported the same numbers wherever it runs."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)
