"""What of this folder belongs to another process, as one process has Keras on one backend; and its seed."""

import random

import pytest

collect_ignore = ["on_torch.py"]


@pytest.fixture(autouse=True)
def _seed_of_initializers() -> None:
    """Draw the same weights each time: Keras takes the seeds of initializers from Python's generator."""
    random.seed(0)
