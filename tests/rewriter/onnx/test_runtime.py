"""What onnxruntime does to its process, it does not do to the user's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.check import opened
from rewriter.onnx.portable.project_first import project_first
from rewriter.onnx.runtime import child
from rewriter.onnx.runtime.session import Session, SessionError
from tests.support.exports import _proto, check_against_torch


def half_precision(permutation: list[int]) -> bytes:
    """A product by a matrix behind a transposition, in float16, which may kill onnxruntime."""
    weight = numpy_helper.from_array(np.ones((3, 4), np.float16), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 6, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=permutation),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return graph.SerializeToString()


def model_of(graph: bytes) -> bytes:
    proto = _proto()
    proto.graph.ParseFromString(graph)
    proto.ir_version = 10
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("sys.exit('no onnxruntime here')", "no onnxruntime here"),
        ("os._exit(7)", "exit status 7"),
    ],
)
def test_a_runtime_that_dies_is_an_error_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    script = tmp_path / "dies.py"
    script.write_text(f"import os, pickle, signal, sys\npickle.load(sys.stdin.buffer)\n{does}\n")
    monkeypatch.setattr(child, "__file__", str(script))
    with pytest.raises(RewriteError, match=f"does not load the model: onnxruntime ends its process .{said}"):
        opened(b"")


def test_a_projection_goes_before_a_transposition() -> None:
    proto = _proto()
    proto.graph.ParseFromString(half_precision([1, 0, 2]))
    project_first(proto.graph)
    assert [node.op_type for node in proto.graph.node][-2:] == ["MatMul", "Transpose"]
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float16)
    with Session(model_of(proto.graph.SerializeToString())) as session:
        found = session.run({"x": x})[0]
    expected = x.astype(np.float64).transpose(1, 0, 2) @ np.ones((3, 4))
    # Three numbers of up to about 3 are added: half a unit of float16 at 8 each.
    assert np.abs(found - expected).max() <= 2**-7


def test_half_precision_with_the_batch_first(tmp_path: Path) -> None:
    model = nn.GRU(3, 4, batch_first=True).half()
    report = export_onnx(model, torch.randn(2, 6, 3).half(), tmp_path / "m.onnx", tolerance=5e-3, loops=True)
    assert report.inputs == {"input": ("batch", "time", 3)}
    # States below 1, rounded to 2**-11 in each of some operations per step.
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 9, 3).half(), bound=5e-3)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(
        RewriteError, match=r"^export_onnx: onnxruntime does not load the model: InvalidProto"
    ):
        opened(b"nothing")


def test_what_the_model_does_not_take_is_refused_and_the_process_goes_on() -> None:
    with Session(model_of(half_precision([0, 1, 2]))) as session:
        with pytest.raises(SessionError, match="InvalidArgument"):
            session.run({"x": np.ones((2, 6, 3), np.float32)})
        assert session.run({"x": np.ones((2, 6, 3), np.float16)})[0].shape == (2, 6, 4)
        process = session._process
    assert process.poll() is not None


def test_without_an_interpreter_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(SessionError, match="no Python interpreter"):
        Session(b"")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(SessionError, match="cannot start /nowhere/python"):
        Session(b"")
