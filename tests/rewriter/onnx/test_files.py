"""Paths, packages and what torch prints."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import infer_batch_axes, read_example
from rewriter.onnx.graph import tidy
from tests.support.exports import Calls, X, _proto, check_against_torch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_names": ["input", "b"]}, "output_names: expected names that no input has, got input"),
        ({"output_names": ["", "b"]}, "output_names: expected 2 different name"),
        ({"output_names": ["a", 3]}, "output_names: expected 2 different name"),
        ({"input_names": [3]}, "input_names: expected 1 different name"),
        ({"input_names": 3}, "input_names: expected 1 different name"),
        (
            {"input_names": ["output_0"], "output_names": ["output_0", "b"]},
            "output_names: expected names that no input has, got output_0",
        ),
        ({"batch_axes": 1}, "batch_axes: expected an axis for some of input, got 1"),
        ({"batch_axes": {"input": "1"}}, "batch_axes: expected the number of an axis for input, got '1'"),
        ({"opset": 18.0}, r"opset: expected 13 to 24, or None for the lowest, got 18\.0"),
    ],
)
def test_arguments_of_wrong_types(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "m.onnx", **options)


def test_a_parameter_may_have_any_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.GRU(3, 4, batch_first=True))
    holder: Any = Calls(lambda _, out: out * holder.axes_0)
    holder.axes_0 = nn.Parameter(torch.randn(4))
    holder.gru = model[0]
    export_onnx(holder, X + 1, tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", holder, torch.randn(4, 5, 3))


def test_a_graph_whose_shapes_do_not_fit_is_refused() -> None:
    with pytest.raises(RewriteError, match="does not find the shapes"):
        tidy(_proto(helper.make_node("Add", ["x"], ["y"], name="one operand")))


@pytest.mark.parametrize("path", [3, None, b"m.onnx", "a\0b"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(RewriteError, match=r"expected (the )?path"):
        export_onnx(nn.GRU(3, 4), X, path)


def test_a_link_is_followed_and_a_pipe_refused(tmp_path: Path) -> None:
    file, link, pipe = tmp_path / "m.onnx", tmp_path / "link.onnx", tmp_path / "pipe.onnx"
    link.symlink_to(file)
    export_onnx(nn.RNN(3, 4), X, link)
    assert link.is_symlink()
    assert not file.is_symlink()
    assert onnx.load(file).graph.node
    os.mkfifo(pipe)
    with pytest.raises(RewriteError, match="expected the path of a regular file"):
        export_onnx(nn.RNN(3, 4), X, pipe)
    assert pipe.is_fifo()


def test_long_file_names(tmp_path: Path) -> None:
    name = "m" * 250 + ".onnx"
    export_onnx(nn.RNN(3, 4), X, tmp_path / name, certificate=False)
    with pytest.raises(RewriteError, match=r"name too long; .*certificate=False"):
        export_onnx(nn.RNN(3, 4), X, tmp_path / name)
    with pytest.raises(RewriteError, match="too long"):
        export_onnx(nn.RNN(3, 4), X, tmp_path / ("long" + name), certificate=False)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_nothing_is_said_but_an_error(tmp_path: Path) -> None:
    code = (
        "import torch, rewriter\n"
        "class Sign(torch.nn.GRU):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)[0]\n"
        "        return y if y.sum() > 0 else -y\n"
        "class Size(torch.nn.GRU):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x, x.new_zeros(1, len(x), 4))[0], None\n"
        "rewriter.export_onnx(Size(3, 4, batch_first=True), torch.ones(2, 5, 3), 'm.onnx')\n"
        "sign = Sign(3, 4, batch_first=True)\n"
        "rewriter.export_onnx(sign, torch.ones(2, 5, 3), 'n.onnx', batch_axes={'x': 0})"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Traceback")
    assert ran.stderr.count("Traceback") == 1
    said = ran.stderr.rpartition("passes.errors.RewriteError: ")[2]
    assert said.startswith("export_onnx: torch.export cannot follow the model")
    assert len(said.splitlines()) == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]


def test_a_folder_that_cannot_be_written_to_is_known_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RewriteError, match=r"expected path in a folder that can be written to, got .*onnx"):
        export_onnx(nn.GRU(4, 4), X, tmp_path / "m.onnx")


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match="make the folder first"):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "missing" / "m.onnx")
    with pytest.raises(RewriteError, match="got the folder"):
        export_onnx(nn.GRU(3, 4), X, tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RewriteError, match=rf"needs {missing}, .*pip install 'rnn-rewriter\[onnx\]'"):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "m.onnx")


def test_import_rewriter_does_not_import_onnx() -> None:
    code = "import sys, rewriter; sys.exit(any(m.split('.')[0].startswith('onnx') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_batch_is_found_in_each_input() -> None:
    model = nn.LSTM(3, 2, batch_first=True)
    inputs = torch.randn(4, 4, 3), (torch.randn(1, 4, 2), torch.randn(1, 4, 2))
    example = read_example(model, inputs)
    assert infer_batch_axes(lambda each: run_torch(model, each), example) == (0, 1, 1)
    weight = torch.eye(3)
    mix = read_example(nn.Bilinear(1, 1, 1), (torch.randn(3, 3), weight))
    assert infer_batch_axes(lambda each: [each.tensors[0] @ each.tensors[1].exp()], mix) == (0, None)
