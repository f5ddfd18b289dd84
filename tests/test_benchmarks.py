"""The benchmarks run; what they measure is not asserted, because machines differ."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", ["additivity", "decompose_time", "explain", "forward", "shap_growth"])
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
