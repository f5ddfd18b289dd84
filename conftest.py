"""Settings for all tests, doctests among them."""

import gc
import os
import sys
from collections.abc import Iterator

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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Run what is marked ``unmeasured`` without coverage's tracer, which takes as long as the test.

    pytest-cov's own mark stops and starts the measurement, a quarter of a second for each test.
    """
    tracer = sys.gettrace()
    if item.get_closest_marker("unmeasured") is None or tracer is None:
        yield
        return
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def pytest_collection_finish() -> None:
    """Spare each collection of garbage what all tests were imported for: it stays to the end."""
    gc.collect()
    gc.freeze()
