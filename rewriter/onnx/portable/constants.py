"""Constants as every runtime, and every quantiser, takes them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from rewriter.onnx.graph import nodes_of

#: Behind the name of a weight that a file holds transposed.
TRANSPOSED = ".T"
# Attributes of a constant that OpenCV takes for another type.
_NUMBERS = {"value_int": "int64", "value_ints": "int64", "value_float": "float32", "value_floats": "float32"}


def state_constants(graph: Any) -> None:
    """Say constants as tensors, also zero, and hold transposed weights in place of transposing them.

    Args:
        graph: an ``onnx.GraphProto``, changed in place.

    """
    from onnx import TensorProto, helper, numpy_helper

    zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    for node in nodes_of(graph):
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", zero))
        elif node.op_type == "Constant" and node.attribute[0].name in _NUMBERS:
            said = node.attribute[0]
            numbers = np.array(helper.get_attribute_value(said), _NUMBERS[said.name])
            said.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(numbers)))
    _store_transposed(graph)


def _store_transposed(graph: Any) -> None:
    """Hold a matrix as it is multiplied by; one that is used in other ways, too, would be there twice."""
    from onnx import numpy_helper

    uses = Counter(name for node in nodes_of(graph) for name in node.input)
    matrices = {each.name: each for each in graph.initializer if len(each.dims) == 2}
    taken: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in matrices:
            taken.setdefault(node.input[0], []).append(node)
    outputs = {each.name for each in graph.output}
    renamed: dict[str, str] = {}
    for name, nodes in taken.items():
        swaps = all(list(node.attribute[0].ints) == [1, 0] for node in nodes if node.attribute)
        if len(nodes) != uses[name] or not swaps or any(node.output[0] in outputs for node in nodes):
            continue
        array = numpy_helper.to_array(matrices[name])
        matrices[name].CopyFrom(numpy_helper.from_array(array.T.copy(), f"{name}{TRANSPOSED}"))
        renamed |= {node.output[0]: f"{name}{TRANSPOSED}" for node in nodes}
    kept = [node for node in graph.node if renamed.keys().isdisjoint(node.output)]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    graph.ClearField("node")
    graph.node.extend(copies)
    for node in nodes_of(graph):
        node.input[:] = [renamed.get(each, each) for each in node.input]
