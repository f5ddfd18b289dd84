"""Models to export, and onnxruntime as the oracle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper
from torch import nn

from rewriter.onnx.graph import bodies_of, nodes_of

FORBIDDEN = {"LSTM", "GRU", "RNN", "Scan", "Loop", "If"}


def leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [leaf for each in values for leaf in leaves(each)]


def check_against_torch(path: Path, model: nn.Module, *inputs: Any, bound: float = 1e-6) -> None:
    """Run the file and the original module on inputs that the export never saw."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = leaves(inputs)
    found = session.run(None, {name: each.numpy() for name, each in zip(names, given, strict=True)})
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        expected = leaves(model(*inputs))
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.numpy() - b).max() <= bound * max(1.0, float(a.abs().max()))


def _proto(*nodes: NodeProto, functions: Sequence[FunctionProto] = ()) -> ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(list(nodes), "g", [value], [helper.make_tensor_value_info("y", 1, [2])])
    return helper.make_model(graph, functions=list(functions), opset_imports=[helper.make_opsetid("", 18)])


X = torch.zeros(2, 5, 3)


class Calls(nn.Module):
    """A GRU, and a function of its input and output that makes the model's output."""

    def __init__(self, end: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.end = end

    def forward(self, x: torch.Tensor) -> Any:
        return self.end(x, self.gru(x)[0])


def unused(graph: Any) -> list[str]:
    """Return what is held or made and read by no one."""
    inner = [graph, *(body for node in nodes_of(graph) for body in bodies_of(node))]
    read = {name for node in nodes_of(graph) for name in node.input}
    read |= {each.name for body in inner for each in body.output}
    held = [each.name for body in inner for each in body.initializer]
    return [name for name in held if name not in read] + [
        node.output[0] for node in nodes_of(graph) if read.isdisjoint(node.output)
    ]
