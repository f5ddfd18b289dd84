"""Files in the words of old versions, with constants that every runtime takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.graph import bodies_of, nodes_of, with_shapes
from rewriter.onnx.portable.constants import state_constants
from rewriter.onnx.portable.opset import lowered
from tests.support.exports import check_against_torch, unused


class Tagger(nn.Module):
    """Split, Shape and a mean along axes, of which each has another form in version 13."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0].mean(1)


def graphs(path: Path) -> list[Any]:
    graph = onnx.load(path).graph
    return [graph, *(body for node in nodes_of(graph) for body in bodies_of(node))]


@pytest.mark.parametrize("loops", [False, True])
def test_the_lowest_version_is_the_default(tmp_path: Path, loops: bool) -> None:
    path = tmp_path / "m.onnx"
    assert export_onnx(Tagger(), torch.randn(2, 5, 3), path, loops=loops).opset == 13
    assert onnx.load(path).ir_version == 7
    check_against_torch(path, read_back(path), torch.randn(3, 5, 3))


@pytest.mark.parametrize("loops", [False, True])
def test_no_constant_is_left_behind(tmp_path: Path, loops: bool) -> None:
    """Of each onnxruntime warns, in a browser's console too."""
    export_onnx(Tagger(), torch.randn(2, 5, 3), path := tmp_path / "m.onnx", loops=loops)
    assert unused(onnx.load(path).graph) == []
    # Axes of the mean, which version 18 takes as an input.
    proto = model_of(
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0),
        inputs=[value("x", ["b", 4])],
        outputs=[value("y", ["b"])],
        constants=[numpy_helper.from_array(np.array([1]), "axes")],
    )
    assert unused(proto.graph) == []
    assert unused(lowered(with_shapes(proto), 13).graph) == []


def read_back(path: Path) -> nn.Module:
    """Return a model with the weights that a file holds."""
    model = Tagger()
    held: dict[str, Any] = {}
    for each in (tensor for graph in graphs(path) for tensor in graph.initializer):
        names, array = each.name.split("+"), numpy_helper.to_array(each)
        held |= {each.name: array} if len(names) == 1 else dict(zip(names, array, strict=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            array = held[name] if name in held else held[f"{name}.T"].T
            parameter.copy_(torch.as_tensor(array.copy()).reshape(parameter.shape))
    return model


def test_a_version_is_what_the_operators_need(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    x = torch.randn(2, 3)
    assert export_onnx(model, x, tmp_path / "m.onnx").opset == 17
    assert export_onnx(model, x, tmp_path / "m.onnx", opset=18).opset == 18
    with pytest.raises(RewriteError, match=r"no form in version 16: LayerNormalization \(node .*\) is newer"):
        export_onnx(model, x, tmp_path / "n.onnx", opset=16)
    assert not (tmp_path / "n.onnx").exists()


def model_of(*nodes: Any, inputs: list[Any], outputs: list[Any], constants: list[Any] | None = None) -> Any:
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def value(name: str, shape: list[Any], type: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, type, shape)


def ran(proto: Any, **given: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


X = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
CASES = {
    "unequal parts": model_of(
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        inputs=[value("x", ["n", 5, 3])],
        outputs=[value("a", ["n", 3, 3]), value("b", ["n", 2, 3])],
    ),
    "some sizes": model_of(
        helper.make_node("Shape", ["x"], ["a"], start=-2),
        helper.make_node("Shape", ["x"], ["b"], end=1),
        helper.make_node("Shape", ["x"], ["c"]),
        inputs=[value("x", ["n", "t", 3])],
        outputs=[value("a", [2], 7), value("b", [1], 7), value("c", [3], 7)],
    ),
    "means": model_of(
        helper.make_node("Constant", [], ["k"], value_ints=[0, 2]),
        helper.make_node("ReduceMean", ["x", "k"], ["a"], keepdims=0),
        helper.make_node("ReduceMax", ["x"], ["b"], noop_with_empty_axes=0),
        inputs=[value("x", ["n", 5, 3])],
        outputs=[value("a", [5]), value("b", [1, 1, 1])],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_other_words_for_the_same(name: str) -> None:
    proto = type(CASES[name]).FromString(CASES[name].SerializeToString())
    expected = ran(proto, x=X)
    state_constants(proto.graph)
    low = lowered(with_shapes(proto), None)
    assert [each.version for each in low.opset_import] == [13]
    for a, b in zip(expected, ran(low, x=X), strict=True):
        assert a.shape == b.shape
        # Float32: a mean of 6 in another order.
        assert np.abs(a - b).max() <= 1e-6


REFUSED = {
    r"Split \(node s\) in parts of sizes that are not known": model_of(
        helper.make_node("Split", ["x"], ["a", "b"], "s", axis=1, num_outputs=2),
        inputs=[value("x", [2, "t"])],
        outputs=[value("a", [2, "t_1"]), value("b", [2, "t_2"])],
    ),
    r"ReduceMax \(node r\) along axes that are computed": model_of(
        helper.make_node("ReduceMax", ["x", "k"], ["a"], "r", keepdims=1),
        inputs=[value("x", [2, 3]), value("k", [1], 7)],
        outputs=[value("a", ["p", "q"])],
    ),
    r"ScatterND \(node s\) takes reduction": model_of(
        helper.make_node("ScatterND", ["x", "k", "u"], ["a"], "s", reduction="add"),
        inputs=[value("x", [4]), value("k", [2, 1], 7), value("u", [2])],
        outputs=[value("a", [4])],
    ),
    r"Pad \(node p\) takes more inputs": model_of(
        helper.make_node("Pad", ["x", "k", "", "u"], ["a"], "p"),
        inputs=[value("x", [4, 2]), value("k", [2], 7), value("u", [1], 7)],
        outputs=[value("a", ["p", 2])],
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_form_is_named(message: str) -> None:
    proto = with_shapes(REFUSED[message])
    with pytest.raises(RewriteError, match=f"no form in version 13: {message}"):
        lowered(proto, 13)
    assert lowered(proto, None).opset_import[0].version > 13


def test_constants_say_what_they_are() -> None:
    weight = numpy_helper.from_array(X[0], "w")
    proto = model_of(
        helper.make_node("Constant", [], ["n"], value_ints=[3, 2]),
        helper.make_node("ConstantOfShape", ["n"], ["z"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["z", "wt2"], ["y"]),
        helper.make_node("Transpose", ["w"], ["wt2"], perm=[1, 0]),
        inputs=[],
        outputs=[value("y", [3, 5])],
        constants=[weight],
    )
    state_constants(proto.graph)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == ["Constant", "ConstantOfShape", "MatMul"]
    assert [each.name for node in proto.graph.node[:2] for each in node.attribute] == ["value", "value"]
    assert [(each.name, list(each.dims)) for each in proto.graph.initializer] == [("w.T", [3, 5])]


def test_a_matrix_that_is_used_in_both_ways_is_there_once() -> None:
    proto = model_of(
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["wt", "w"], ["y"]),
        inputs=[],
        outputs=[value("y", [3, 3])],
        constants=[numpy_helper.from_array(X[0], "w")],
    )
    before = proto.SerializeToString()
    state_constants(proto.graph)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("loops", [False, True])
def test_a_quantiser_finds_the_weights(tmp_path: Path, loops: bool) -> None:
    torch.manual_seed(0)
    model, x = Tagger(), torch.randn(3, 5, 3)
    export_onnx(model, x, tmp_path / "m.onnx", loops=loops)
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", extra_options={"EnableSubgraph": True})
    floats = [
        each.name
        for graph in graphs(tmp_path / "q.onnx")
        for each in graph.initializer
        if each.data_type == TensorProto.FLOAT and len(each.dims) == 2
    ]
    assert not floats
    # Eight bits: weights and inputs of size 1 are off by 1/256 each, and states are below 1.
    check_against_torch(tmp_path / "q.onnx", model, x, bound=3e-2)


def test_inner_shapes_are_left_to_the_runtime(tmp_path: Path) -> None:
    export_onnx(Tagger(), torch.randn(2, 5, 3), tmp_path / "m.onnx", loops=True)
    assert not any(graph.value_info for graph in graphs(tmp_path / "m.onnx"))
