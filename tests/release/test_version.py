"""One version, whoever says it."""

from __future__ import annotations

import importlib.metadata
import tomllib

import yaml

import rewriter
from tests.release.environments import ROOT, pinned


def test_version_is_said_once() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert rewriter.__version__ == cited["version"] == importlib.metadata.version("rnn-rewriter")


def test_pins_agree() -> None:
    names = [line.partition("==")[0].lower() for line in pinned()]
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in pinned()
