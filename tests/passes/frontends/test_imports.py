"""What a model's code first imports while it is traced is imported as it always is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewriter import decompose

LATE = """
import torch
from importlib import import_module
zeros, table = torch.zeros, torch.zeros(3)
inner = import_module("a_later_one")
"""


class Imports(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        late = importlib.import_module("a_late_one")
        return self.l(x) + torch.zeros(x.shape[0], 3) + late.table.sum().item()


def test_a_module_imported_meanwhile_sees_no_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_late_one.py").write_text(LATE)
    (tmp_path / "a_later_one.py").write_text("from torch import ones, zeros")
    monkeypatch.syspath_prepend(tmp_path)
    plain, finders = (torch.zeros, torch.ones), list(sys.meta_path)
    decompose(Imports().eval())
    late = sys.modules.pop("a_late_one")
    later = sys.modules.pop("a_later_one")
    assert late.zeros is torch.zeros
    assert (later.zeros, later.ones) == plain == (torch.zeros, torch.ones)
    assert sys.meta_path == finders
    # As if nobody had been there.
    assert late.__loader__ is late.__spec__.loader
    assert type(late.__loader__).__name__ == "SourceFileLoader"


class Fails(Imports):
    def forward(self, x: Tensor) -> Tensor:
        importlib.import_module("a_broken_one")
        return x


def test_a_module_that_fails_to_import_leaves_no_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_broken_one.py").write_text("import torch; torch.zeros(3); raise ValueError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    plain, finders = torch.zeros, list(sys.meta_path)
    assert "broken" in decompose(Fails().eval()).report.islands[""]
    assert torch.zeros is plain
    assert sys.meta_path == finders
