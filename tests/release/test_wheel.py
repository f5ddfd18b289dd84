"""The wheel in empty environments: alone, and with each extra alone.

``make release`` runs these. ``RELEASE_PYTHON`` names another Python than the one that runs the tests.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

import rewriter
from tests.release.environments import Environment, pinned

pytestmark = pytest.mark.release

PROGRAMS = Path(__file__).parent / "programs"
# What an extra brings, by which it is told that it was not there before.
EXTRAS = {
    "shap": "shap",
    "captum": "captum",
    "onnx": "onnxruntime",
    "plots": "matplotlib",
    "cli": "typer",
    "jobs": "pyarrow",
    "keras": "keras",
    "tensorflow": "tensorflow",
    "ray": "ray",
}
# The oldest versions that pyproject.toml promises; of torch those that requirements/ pins.
OLDEST = {
    "shap": ["shap==0.46.0", "numpy==1.26.4"],
    "captum": ["captum==0.8.0", "numpy==1.26.4"],
    "onnx": ["onnx==1.18.0", "onnxruntime==1.22.0", "onnxscript==0.7.0"],
    "plots": ["matplotlib==3.8.0", "shap==0.46.0", "numpy==1.26.4"],
    "cli": ["typer==0.16.0", "rich==13.0.0", "wrapt==1.16.0"],
    "jobs": ["pyarrow==17.0.0", "numpy==1.26.4"],
    "keras": ["keras==3.5.0"],
}
# Their newest releases need a newer NumPy.
COMPILED_AGAINST_NUMPY = frozenset(
    ("pandas", "scikit-learn", "scipy", "contourpy", "ml_dtypes", "numba", "llvmlite")
)


def run(environment: Environment, program: str) -> str:
    done = environment.run(
        "-W", "error::DeprecationWarning:rewriter", str(PROGRAMS / program), PYTHONPATH=str(PROGRAMS)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_extras(bare: Environment) -> None:
    assert run(bare, "without_extras.py").split()[-1] == rewriter.__version__


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra(extra: str, wheel: Path, another: Environment) -> None:
    assert not another.has(EXTRAS[extra])
    another.install(f"{wheel}[{extra}]", constraints=pinned())
    run(another, f"with_{extra}.py")


@pytest.mark.parametrize("extra", OLDEST)
def test_oldest_versions(extra: str, wheel: Path, another: Environment) -> None:
    old = OLDEST[extra]
    free = frozenset(line.partition("==")[0] for line in old) | COMPILED_AGAINST_NUMPY
    another.install(f"{wheel}[{extra}]", *old, constraints=pinned(without=free))
    run(another, f"with_{extra}.py")


def test_wheel_holds_the_libraries_and_nothing_of_others(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "passes",
        "rewriter",
        f"rnn_rewriter-{rewriter.__version__}.dist-info",
    }
    assert any("/sweeps/libraries/" in name for name in names)
    assert "rewriter/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_archive_has_what_is_built(archive: Path) -> None:
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "rewriter/engine/sweeps/sweep.c"} <= names
