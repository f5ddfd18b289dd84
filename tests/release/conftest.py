"""The wheel and its source archive, built once, and the environment that all others begin with."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.release.environments import ROOT, Environment, pinned

# They run in other environments.
collect_ignore = ["programs"]


@pytest.fixture(scope="session")
def python() -> str:
    """Return the interpreter that installs: ``RELEASE_PYTHON``, or the one that runs the tests."""
    return os.environ.get("RELEASE_PYTHON", getattr(sys, "_base_executable", sys.executable))


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, of what is committed or about to be."""
    folder = tmp_path_factory.mktemp("archive")
    _run(sys.executable, "-m", "build", "--sdist", "--outdir", str(folder), str(ROOT))
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from the source archive, in a folder where the repository is not."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = next(each for each in folder.iterdir() if each.is_dir())
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def bare(python: str, wheel: Path) -> Iterator[Environment]:
    """Install the wheel, without extras, where nothing is."""
    with tempfile.TemporaryDirectory() as folder:
        made = Environment.empty(python, Path(folder, "bare"))
        made.install(str(wheel), constraints=pinned())
        yield made


@pytest.fixture
def another(python: str, wheel: Path, bare: Environment) -> Iterator[Environment]:
    """Return a copy, which is gone after the test: each takes a gigabyte or more."""
    with tempfile.TemporaryDirectory(dir=bare.folder.parent) as folder:
        copied = bare.copy(python, Path(folder, "venv"))
        # It has the packages of the other environment, not its commands.
        copied.install("--no-deps", "--force-reinstall", str(wheel), constraints=[])
        yield copied


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
