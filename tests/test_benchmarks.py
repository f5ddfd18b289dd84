"""The benchmarks run; what they measure is not asserted, because machines differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "additivity",
        "decompose_time",
        "explain",
        "forward",
        "shap_growth",
        "truth_paths",
        "onnx_explainer",
        "files/onnx_export",
        "proof",
        "truth_references",
    )
]


@pytest.mark.parametrize("name", SLOW)
def test_runs_and_writes_nothing(name: str) -> None:
    pytest.importorskip("shap")
    before = {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").glob("*")}
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--no-write"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"$ python benchmarks/{name}.py --quick --no-write\n")
    assert {path: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").glob("*")} == before


def test_growth_is_the_slope_in_a_log_log_plot() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from timing import exponent; print(exponent((1, 2, 4), (3.0, 12.0, 48.0)))"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=True,
    )
    assert abs(float(ran.stdout) - 2) < 1e-12


def test_parts_of_a_benchmark_are_kept_apart(tmp_path: Path) -> None:
    program = """
import argparse, pathlib, sys, timing
timing.RESULTS = pathlib.Path(sys.argv[1])
options = argparse.Namespace(no_write=False)
for part, value in (("a", "1"), ("b", "2"), ("a", "3")):
    timing.publish("x", options, ("h",), [(value,)], ["note " + part], [{"value": value}], part=part)
"""
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=BENCHMARKS, check=True, capture_output=True
    )
    data = json.loads((tmp_path / "x.json").read_text())
    assert {part: each["results"] for part, each in data.items()} == {
        "a": [{"value": "3"}],
        "b": [{"value": "2"}],
    }
    text = (tmp_path / "x.txt").read_text()
    assert text.index("note a") < text.index("note b")
