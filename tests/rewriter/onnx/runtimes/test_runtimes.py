"""Files load and run, equal to torch, in whatever runtime is installed; `make runtimes` installs them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rewriter.onnx.runtimes import runners
from tests.rewriter.onnx.runtimes.kinds import FORMS, KINDS, write_files


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


# onnxruntime is what every other test asks.
@pytest.mark.parametrize("name", [name for name in runners.RUNNERS if name != "onnxruntime"])
def test_it_runs_what_its_operators_allow(name: str, request: pytest.FixtureRequest) -> None:
    _, distribution, module = runners.RUNNERS[name]
    pytest.importorskip(module, reason=f"{distribution} is not installed: make runtimes")
    folder = request.getfixturevalue("files")
    command = [sys.executable, runners.__file__, name, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    forms = FORMS if name in runners.WITH_SCAN else ("flat",)
    asked = {f"{kind}.{form}": found[f"{kind}.{form}"] for kind in KINDS for form in forms}
    # Float32: some roundings of numbers of size 1, as between onnxruntime and torch.
    assert not {file: said for file, said in asked.items() if isinstance(said, str) or not said <= 1e-6}
    others = {file: said for file, said in found.items() if file not in asked}
    assert all(isinstance(said, str) for said in others.values()), "it has Scan now: say so in WITH_SCAN"
