"""The demo of ``make demo``: its table, its files, its comparison with TensorFlow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import demo  # type: ignore[import-not-found]
import numpy as np
import onnx
import pytest
import torch

EXAMPLE = Path(demo.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """Run the demo where it finds no TensorFlow, as after ``make demo`` on a fresh machine."""
    hidden = "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv[1:] = ['--out', 'out']"
    run = f"{hidden}; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figures(printed: str, row: str) -> list[float]:
    line = next(line for line in printed.splitlines() if row in line)
    return [float(figure) for figure in re.findall(r"\d\.\de[-+]\d+", line)]


def test_table_shows_the_promises_kept(printed: str) -> None:
    as_is, decomposed = figures(printed, "additivity error")
    assert as_is > 1
    # 1e-6 relative to the logits, which reach 10.
    assert decomposed <= 1e-5
    # The library's promises for float32: outputs to 1e-5, an ONNX file to 1e-6.
    assert figures(printed, "largest difference to the original")[0] <= 1e-5
    assert figures(printed, "onnxruntime against torch")[0] <= 1e-6
    as_is, ours = figures(printed, "in Keras' LSTM")
    assert as_is > 1
    assert ours <= 1e-5
    assert figures(printed, "onnxruntime alone")[0] <= 1e-5
    assert "equal" in printed
    assert "NOT EQUAL" not in printed
    assert "TensorFlow is not installed" in printed
    accuracy = re.search(r"accuracy on the test set ([\d.]+)", printed)
    assert accuracy
    assert float(accuracy[1]) >= 0.9


def test_files_are_a_picture_and_a_model_without_recurrent_operators(printed: str, folder: Path) -> None:
    assert "basic_motions.png" in printed
    assert (folder / "out/basic_motions.png").read_bytes().startswith(b"\x89PNG")
    operators = {node.op_type for node in onnx.load(folder / "out/basic_motions.onnx").graph.node}
    assert "Sigmoid" in operators
    assert not operators & {"LSTM", "GRU", "RNN"}


def test_it_ends_with_the_report(printed: str, folder: Path) -> None:
    path = printed.rstrip().rpartition(" ")[2]
    page = (folder / path).read_text(encoding="utf-8")
    assert all(activity in page for activity in ("badminton", "running", "standing", "walking"))


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_comparison_with_tensorflow() -> None:
    pytest.importorskip("tensorflow")
    model = demo.MotionClassifier(6, 4)
    compared = demo.differences_to_tensorflow(model, torch.randn(5, 4, 6), torch.randn(1, 4, 6))
    assert compared is not None
    as_is, decomposed = compared
    # The bound for float32 holds in float64 with room for the differences that shap leaves out.
    assert decomposed <= 1e-6 < as_is


def test_recordings_have_a_row_for_each_channel() -> None:
    learnt, test = demo.load()
    assert learnt.x.shape == test.x.shape == (40, 50, len(demo.CHANNELS))
    assert learnt.activities == test.activities == ["badminton", "running", "standing", "walking"]
    np.testing.assert_allclose(learnt.x.mean((0, 1)), 0, atol=1e-5)
