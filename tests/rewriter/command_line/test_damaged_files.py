"""Files that were cut, written over, or are of another kind than they say end in one line of error."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from rewriter.command_line.application import application

x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def _csv(path: Path) -> None:
    np.savetxt(path, x, delimiter=",", header="a,b,c,d", comments="")


def _arrow(path: Path) -> None:
    table = pa.table({f"c{k}": x[:, k] for k in range(4)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Any] = {
    ".npy": lambda path: np.save(path, x),
    ".npz": lambda path: np.savez_compressed(path, x=x),
    ".csv": _csv,
    ".parquet": lambda path: pq.write_table(pa.table({f"c{k}": x[:, k] for k in range(4)}), path),
    ".arrow": _arrow,
}


@pytest.fixture(scope="module")
def model() -> Any:
    # A model of one operation: what is tried is the files.
    module = type(sys)("shop_of_files")
    module.ready = nn.Linear(4, 1).eval()  # type: ignore[attr-defined]
    sys.modules["shop_of_files"] = module
    yield "shop_of_files:ready"
    del sys.modules["shop_of_files"]


def damaged(content: bytes, how: str, chance: random.Random) -> bytes:
    if how == "cut":
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 9)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def ends_in_a_line(arguments: list[str]) -> int:
    done = CliRunner().invoke(application, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    if done.exit_code == 2:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("rewriter: ")
        # An error of a library that we did not foresee has its class before it, and a hint of --debug.
        assert "--debug" not in done.stderr, done.stderr
    return done.exit_code


@pytest.mark.parametrize("how", ["cut", "written over"])
@pytest.mark.parametrize("ending", list(WRITERS))
def test_a_damaged_file(ending: str, how: str, model: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{ending}"
    WRITERS[ending](whole)
    chance, codes = random.Random(0), set()
    for trial in range(25):
        path = tmp_path / f"x{trial}{ending}"
        path.write_bytes(damaged(whole.read_bytes(), how, chance))
        out = str(tmp_path / f"out{trial}")
        codes.add(ends_in_a_line(["explain", model, str(path), "-o", out, "--rows", "2", "-q"]))
    # A number that is no number any more costs its row alone.
    assert codes - {0}
    assert codes <= {0, 1, 2}


@pytest.mark.parametrize("other", list(WRITERS))
@pytest.mark.parametrize("ending", list(WRITERS))
def test_a_file_of_another_kind(ending: str, other: str, model: str, tmp_path: Path) -> None:
    made = tmp_path / f"made{other}"
    WRITERS[other](made)
    path = made.rename(tmp_path / f"x{ending}")
    code = ends_in_a_line(["explain", model, str(path), "-o", str(tmp_path / "out"), "--rows", "2", "-q"])
    assert code == (0 if ending == other else 2)


def test_a_damaged_program(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 1), (torch.from_numpy(x),)), whole)
    chance = random.Random(0)
    for trial in range(20):
        path = tmp_path / f"x{trial}.pt2"
        path.write_bytes(damaged(whole.read_bytes(), "cut", chance))
        assert ends_in_a_line(["inspect", str(path)]) == 2
