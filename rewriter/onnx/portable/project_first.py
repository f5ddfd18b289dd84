"""Multiply by weights before axes are exchanged, in half precision.

At its highest level of optimisation onnxruntime fuses a Transpose of the leading axes into the MatMul behind
it, for which it has no kernel in float16, and the process dies.
"""

from __future__ import annotations

from typing import Any


def project_first(graph: Any) -> None:
    """Let each Transpose that leaves the last axis where it is follow the MatMul that it precedes.

    Args:
        graph: an ``onnx.GraphProto``, changed in place; one that holds no float16 stays as it is.

    """
    from onnx import TensorProto, helper

    if not any(each.data_type == TensorProto.FLOAT16 for each in graph.initializer):
        return
    rank = {each.name: len(each.dims) for each in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "MatMul":
            continue
        before, weight = made.get(node.input[0]), node.input[1]
        source = made.get(weight)
        if source is not None and source.op_type == "Transpose":
            weight = source.input[0]
        if before is None or before.op_type != "Transpose" or rank.get(weight) != 2:
            continue
        permutation = next((list(each.ints) for each in before.attribute if each.name == "perm"), [])
        if not permutation or permutation[-1] != len(permutation) - 1:
            continue
        output, projected = node.output[0], f"{node.output[0]}.projected"
        node.input[0], node.output[0] = before.input[0], projected
        nodes.append(helper.make_node("Transpose", [projected], [output], name=output, perm=permutation))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
