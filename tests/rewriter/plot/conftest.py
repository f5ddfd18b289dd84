"""Pictures are drawn into memory, and closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("shap")
    matplotlib.use("Agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
