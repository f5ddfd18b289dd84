"""What a program would run while it is read is found before it is read; what torch writes itself is not."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from rewriter.command_line.failures import CommandError
from rewriter.command_line.models import load_model
from rewriter.command_line.programs.unasked import is_expression, is_operation, unasked


class Several(nn.Module):
    """Sizes that are computed, a branch, dictionaries, operators of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, tokens: Tensor, x: Tensor) -> dict[str, Tensor]:
        h = self.linear(self.embedding(tokens))
        y = torch.cond(x.sum() > 0, lambda z: z + 1, lambda z: z * 2, (x,))
        half = h[:, -1].reshape(h.shape[0] // 2, -1)
        return {"half": half, "branch": y.softmax(-1), "mask": (tokens == 3) & (tokens > 1)}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "model.pt2"
    free = {0: 2 * Dim("half", min=1, max=32)}, {0: Dim("rows")}
    example = torch.randint(0, 9, (8, 5)), torch.randn(8, 4)
    torch.export.save(torch.export.export(Several().eval(), example, dynamic_shapes=free), path)
    return path


def changed(program: Path, to: Path, change: Callable[[Any], None], extra: str | None = None) -> Path:
    with zipfile.ZipFile(program) as plain, zipfile.ZipFile(to, "w") as other:
        for each in plain.namelist():
            content = plain.read(each)
            if each.endswith("models/model.json"):
                described = json.loads(content)
                change(described)
                content = json.dumps(described).encode()
            other.writestr(each, content)
        if extra is not None:
            other.writestr(f"{plain.namelist()[0].split('/')[0]}/{extra}", b"")
    return to


def every(value: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [each for inner in value for each in every(inner, key)]
    if not isinstance(value, dict):
        return []
    inside = [each for inner in value.values() for each in every(inner, key)]
    return [value, *inside] if isinstance(value.get(key), str) else inside


def test_what_torch_writes_is_read(program: Path) -> None:
    assert unasked(program) is None
    assert isinstance(load_model(str(program)).model, nn.Module)


@pytest.mark.filterwarnings("error")
def test_an_expression_that_runs_code_does_not_run(program: Path, tmp_path: Path) -> None:
    ran = tmp_path / "it_ran"

    def change(described: Any) -> None:
        every(described, "expr_str")[0]["expr_str"] = f"__import__('pathlib').Path({str(ran)!r}).touch()"

    evil = changed(program, tmp_path / "evil.pt2", change)
    with pytest.raises(CommandError, match=r"holds the size .*may run code when it is read; --trust"):
        load_model(str(evil))
    assert not ran.exists()


@pytest.mark.parametrize("target", ["torch.os.system", "torch.ops.load_library", "_operator.call"])
def test_a_call_of_what_is_no_operation_is_refused(target: str, program: Path, tmp_path: Path) -> None:
    def change(described: Any) -> None:
        every(described, "target")[0]["target"] = target

    with pytest.raises(CommandError, match=re.escape(f"holds a call of {target}")):
        load_model(str(changed(program, tmp_path / "evil.pt2", change)))


@pytest.mark.parametrize("extra", ["data/aotinductor/model/run.so", "data/constants/custom_obj_0"])
def test_compiled_code_and_objects_are_refused(extra: str, program: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=re.escape(extra)):
        load_model(str(changed(program, tmp_path / "evil.pt2", lambda _: None, extra)))


@pytest.mark.parametrize(
    "text",
    [
        "exec('1')",
        "Symbol('s0').__class__",
        "sympify('1')",
        "Integer('1')",
        "(lambda: 1)()",
        "[Symbol for _ in (1,)]",
        "Symbol(open('x'))",
        "f'{1}'",
        "Symbol('s0 or exec(1)')",
        "(" * 5000,
        7,
    ],
)
def test_no_expressions(text: Any) -> None:
    assert not is_expression(text)


@pytest.mark.parametrize("target", ["math.__loader__", "_operator.attrgetter", "torch.load", "#ext", "torch"])
def test_no_operations(target: str) -> None:
    assert not is_operation(target)
