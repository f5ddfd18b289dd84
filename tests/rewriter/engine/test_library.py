"""Where the library in C comes from, what is said where it is missing, and that nothing is built unasked."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rewriter
from rewriter import DeepExplainer, RewriteError
from rewriter.engine.sweeps import build_library, library
from rewriter.engine.sweeps.backend import SlowBackendWarning
from rewriter.engine.sweeps.build_library import build, build_all, fits_any_linux, name_of
from rewriter.engine.sweeps.compiled import compiled_cell
from rewriter.engine.sweeps.library import compiling
from tests.support.models import gallery

ROOT = Path(rewriter.__file__).parent.parent
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
LEVEL = torch.backends.cpu.get_cpu_capability()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installation without the library, an empty cache, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "FOLDER", tmp_path / "libraries")
    library.loaded.cache_clear()
    yield tmp_path / "rnn-rewriter"
    library.loaded.cache_clear()


def explained(**options: Any) -> tuple[DeepExplainer, Any]:
    torch.manual_seed(0)
    model, x, background = gallery.Classifier("LSTM"), torch.randn(2, 6, 3), torch.randn(4, 6, 3)
    explainer = DeepExplainer(model, background, **options)
    return explainer, explainer.shap_values(x)


@needs_compiler
def test_an_installation_has_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer, _ = explained()
    assert explainer.backend == "C"


def test_the_slow_backend_is_told_once_and_nothing_is_built(bare: Path) -> None:
    with pytest.warns(SlowBackendWarning, match="several times slower.*compiled='build'") as told:
        explainer, slow = explained()
    assert len(told) == 1
    assert told[0].filename == __file__
    assert explainer.backend == "torch"
    assert not list(bare.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer, plain = explained(compiled=False)
    assert explainer.backend == "torch"
    np.testing.assert_array_equal(slow, plain)


class Softened(nn.Module):
    """A loop over a cell whose atom has no operation in the library."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.zeros(x.shape[0], 2)
        for t in range(6):
            h = nn.functional.softsign(self.x(x[:, t]) + self.h(h))
        return h


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(18, 1)), Softened()], ids=type)
def test_where_there_is_no_form_in_c_there_is_nothing_to_mend(model: nn.Module, bare: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=SlowBackendWarning)
        explainer = DeepExplainer(model, torch.zeros(2, 6, 3))
    assert explainer.backend == "torch"


@needs_compiler
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_torchs_run_in_c(kind: str) -> None:
    assert DeepExplainer(gallery.Classifier(kind), torch.zeros(2, 6, 3)).backend == "C"


@needs_compiler
def test_builds_once_if_asked(bare: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer, _ = explained(compiled="build")
    assert explainer.backend == "C"
    made = {each.name: each.stat().st_mtime_ns for each in bare.iterdir()}
    assert set(made) == {name_of("float", LEVEL, threads) for threads in ("threads", "alone")}
    assert stat.S_IMODE(bare.stat().st_mode) == 0o700
    library.loaded.cache_clear()
    explained(compiled="build")
    assert {each.name: each.stat().st_mtime_ns for each in bare.iterdir()} == made
    # What is built is found by those who do not ask for it, too.
    library.loaded.cache_clear()
    assert explained()[0].backend == "C"


@needs_compiler
def test_runs_nothing_that_others_may_write(bare: Path) -> None:
    bare.mkdir()
    bare.chmod(0o777)
    with pytest.warns(SlowBackendWarning, match="can be written to by others"):
        explained(compiled="build")
    assert not list(bare.iterdir())


@pytest.mark.parametrize("compiler", ["missing", "failing", "not a library"])
def test_without_a_working_compiler(compiler: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare.parent / "bin"
    folder.mkdir()
    if compiler != "missing":
        script = 'while [ "$1" != -o ]; do shift; done; echo no > "$2"' if compiler != "failing" else "exit 1"
        (folder / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(SlowBackendWarning, match="found no C compiler"):
        explainer, fast = explained(compiled="build")
    assert explainer.backend == "torch"
    np.testing.assert_array_equal(fast, explained(compiled=False)[1])


@needs_compiler
@pytest.mark.parametrize("threads", ["threads", "alone"])
def test_each_form_computes_the_same(threads: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = explained(compiled=False)
    monkeypatch.setattr(library, "OPENMP", {threads: build_library.OPENMP[threads]})
    explainer, fast = explained(compiled="build")
    assert explainer.backend == "C"
    np.testing.assert_allclose(fast, plain, rtol=0, atol=2e-6 * np.abs(plain).max())


@needs_compiler
def test_a_library_needs_no_other(tmp_path: Path) -> None:
    built = build(tmp_path, "float", "")
    assert len(built) == 2
    assert all(map(fits_any_linux, built))
    assert not fits_any_linux(Path(torch._C.__file__))


@pytest.mark.parametrize("works", [True, False])
def test_a_build_of_the_package_brings_it_where_a_compiler_is(works: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in ("rewriter", "passes"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # What a compiler makes is tested above; here, where it goes.
    compiler = tmp_path / "cc"
    made = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    compiler.write_text(f"#!/bin/sh\n{made if works else 'exit 1'}\n")
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", "wheels"],
        cwd=source,
        env=os.environ | {"CC": str(compiler)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "wheels").iterdir()
    found = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    if not works:
        assert found == set()
        assert wheel.name.endswith("-py3-none-any.whl")
        assert "no working C compiler" in done.stderr + done.stdout
        return
    assert found == {
        name_of(real, level, threads)
        for real in build_library.REALS
        for level in build_library.levels()
        for threads in build_library.OPENMP
    }
    assert "-py3-none-" in wheel.name
    assert sys.platform != "linux" or "-manylinux2014_" in wheel.name


def test_an_older_source_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of("float", "", "alone")
    newer = tmp_path / "sweep.c"
    newer.write_text(build_library.SOURCE.read_text() + "\n")
    monkeypatch.setattr(build_library, "SOURCE", newer)
    build_library._key.cache_clear()
    try:
        assert name_of("float", "", "alone") != before
    finally:
        build_library._key.cache_clear()


def test_what_compiled_may_be() -> None:
    with pytest.raises(RewriteError, match="compiled: expected True, False or 'build', got 'yes'"):
        DeepExplainer(nn.Linear(3, 1), torch.zeros(2, 3), compiled="yes")  # type: ignore[arg-type]


def test_for_single_and_double_precision_on_the_cpu_only() -> None:
    for like in (torch.zeros(1).half(), torch.zeros(1, device="meta")):
        assert compiled_cell("lstm", like, 4) is None
    with compiling(False):
        assert compiled_cell("lstm", torch.zeros(1), 4) is None


def test_build_all_makes_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_library, "compiler", lambda: None)
    assert build_all(tmp_path / "new" / "folder") == []
    assert (tmp_path / "new" / "folder").is_dir()
