"""Results take the place of results alone: never that of data, and of nothing that a user may miss."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import nn
from typer.testing import CliRunner

from rewriter.command_line.application import application

x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("shop_of_results")
    module.ready = nn.Linear(4, 1).eval()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop_of_results", module)
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=x)
    np.savez("train.npz", x=x)


def explain(out: str, *options: str) -> tuple[int, str]:
    arguments = ["explain", "shop_of_results:ready", "x.npz", "-b", "train.npz", "-o", out, "-q", *options]
    done = CliRunner().invoke(application, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    return done.exit_code, done.stderr


def _linked() -> None:
    os.link("x.npz", "linked.npz")


def _parquet() -> None:
    pq.write_table(pa.table({"precious": [1.0]}), "mine.parquet")


REFUSED = {
    "data": (None, "x.npz", "is what results are made of"),
    "background": (None, "./train.npz", "is what results are made of"),
    "hard link": (_linked, "linked.npz", "is what results are made of"),
    "an archive": (lambda: np.savez("mine.npz", precious=x), "mine.npz", "no result of this command"),
    "no archive": (lambda: Path("mine.npz").write_text("mine"), "mine.npz", "no result of this command"),
    "a table": (_parquet, "mine.parquet", "no result of this command"),
    "a folder": (lambda: Path("v.npz").mkdir(), "v.npz", "is a folder"),
    "a file": (lambda: Path("v").write_text("mine"), "v", "is a file; give a folder"),
    "csv": (None, "v.csv", "written as .npz or .parquet, or to a folder"),
    "npy": (None, "v.npy", "written as .npz or .parquet, or to a folder"),
    "capitals": (None, "v.NPZ", "written as .npz or .parquet, or to a folder"),
    "nothing": (None, "", "give the name of a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_results_may_not_replace(name: str) -> None:
    make, out, said = REFUSED[name]
    if make is not None:
        make()
    before = {each: each.read_bytes() for each in Path().iterdir() if each.is_file()}
    code, told = explain(out)
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert {each: each.read_bytes() for each in Path().iterdir() if each.is_file()} == before


@pytest.mark.parametrize("out", ["v.npz", "v.parquet", "values.v2"])
def test_results_are_replaced(out: str) -> None:
    assert explain(out) == (0, "")
    assert explain(out) == (0, "")
    assert sorted(each.name for each in Path().iterdir()) == sorted([out, "train.npz", "x.npz"])


def test_an_option_that_cannot_hold_leaves_nothing() -> None:
    for options in (("--draws", "2"), ("--cells", "shapley")):
        code, told = explain("v.npz", *options)
        assert code == 2
        assert len(told.strip().splitlines()) == 1
    assert sorted(each.name for each in Path().iterdir()) == ["train.npz", "x.npz"]
