"""The workflows of the documentation do what they say: their commands are taken out of it and run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rewriter.command_line.application import application

PAGE = Path(__file__).parents[3] / "docs/guides/continuous_integration.md"
MODELS = """
import torch
from torch import nn

class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

forecaster = Forecaster
"""


def steps(workflow: dict[str, Any]) -> list[str]:
    """Return the commands of a workflow of GitHub or GitLab."""
    (job,) = (workflow.get("jobs") or workflow).values()
    return [each["run"] for each in job["steps"] if "run" in each] if "steps" in job else job["script"]


WORKFLOWS = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=["github", "gitlab"])
def test_commands_run_and_hold(
    workflow: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("shop", "shop.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    np.save("samples.npy", np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
    commands = [each for each in steps(workflow) if each.startswith("rewriter ")]
    assert len(commands) > 2
    for command in commands:
        done = CliRunner().invoke(application, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output
    assert Path("summary.md").read_text().startswith("### `shop.models:forecaster`: equal")
    for path in ("forecaster.onnx", "forecaster.onnx.json"):
        assert Path(path).stat().st_size
    for name in ("shop", "shop.models"):
        sys.modules.pop(name, None)
