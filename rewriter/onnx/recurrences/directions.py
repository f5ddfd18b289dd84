"""Both directions of a layer in one Scan: a runtime begins half as many operations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.onnx.graph import bodies_of

# What computes on (2, B, H) as on (B, H) of each direction.
_ALIKE = frozenset({"Sigmoid", "Tanh", "Relu", "Mul", "Add", "Sub", "Identity"})
_FIRST, _SECOND = "rewriter.axes_0", "rewriter.axes_1"


def join_directions(graph: Any) -> None:
    """Let a forward and a reverse Scan of the same steps be one, over states (2, B, H) and weights (2, H, G).

    Args:
        graph: an ``onnx.GraphProto`` with the weights of each Scan in its body, changed in place. Scans that
            need each other, that are masked, or whose steps differ, stay.

    """
    from onnx import TensorProto, helper

    nodes = list(graph.node)
    while (found := _pair(nodes)) is not None:
        first, second = found
        joined = _joined(nodes[first], nodes[second])
        nodes[second : second + 1] = joined
        del nodes[first]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    taken = {name for node in copies for name in node.input}
    for name, value in ((_FIRST, 0), (_SECOND, 1)):
        if name in taken:
            graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))


def _pair(nodes: Sequence[Any]) -> tuple[int, int] | None:
    scans = [k for k, node in enumerate(nodes) if node.op_type == "Scan"]
    for first, second in itertools.pairwise(scans):
        between = {name for node in nodes[first + 1 : second + 1] for name in node.input}
        if between.isdisjoint(nodes[first].output) and _alike(nodes[first], nodes[second]):
            return first, second
    return None


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute if each.name != "body"}


def _alike(first: Any, second: Any) -> bool:
    """Whether two Scans run opposite ways and do the same with weights of the same shapes."""
    one, other = _attributes(first), _attributes(second)
    if one.get("scan_input_directions", [0]) != [0] or other.get("scan_input_directions") != [1]:
        return False
    bodies = [next(bodies_of(node)) for node in (first, second)]
    if len(first.output) != len(second.output) or len(bodies[0].node) != len(bodies[1].node):
        return False
    shapes = [{each.name: list(each.dims) for each in body.initializer} for body in bodies]
    # Names in one body and, at the same places, in the other.
    same = dict(zip(*([each.name for each in body.input] for body in bodies), strict=True))
    for a, b in zip(bodies[0].node, bodies[1].node, strict=True):
        known = a.op_type in _ALIKE or a.op_type in ("Gemm", "Split")
        if not known or a.op_type != b.op_type or _attributes(a) != _attributes(b):
            return False
        if len(a.input) != len(b.input) or (a.op_type == "Gemm" and _attributes(a) != {"transB": 1}):
            return False
        for name, twin in zip(a.input, b.input, strict=True):
            if name in shapes[0]:
                if a.op_type in _ALIKE or shapes[0][name] != shapes[1].get(twin):
                    return False
            elif same.get(name) != twin:
                return False
        same |= dict(zip(a.output, b.output, strict=True))
    ends = [[*body.input, *body.output] for body in bodies]
    if any(len(each.type.tensor_type.shape.dim) != 2 for each in ends[0]):
        return False
    widths = [[each.type.tensor_type.shape.dim[1].dim_value for each in values] for values in ends]
    return widths[0] == widths[1] and all(same.get(a.name) == b.name for a, b in zip(*ends, strict=True))


def _joined(first: Any, second: Any) -> list[Any]:
    """Return the nodes that take the place of two Scans."""
    from onnx import helper

    prefix = f"{first.name}.both"
    made: list[Any] = []

    def emit(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        made.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    states, outputs = len(first.input) - 1, len(first.output)
    given = []
    for k in range(states):
        name = f"{prefix}.state{k}"
        parts = [
            emit("Unsqueeze", [node.input[k], _FIRST], f"{name}.{d}")
            for d, node in enumerate((first, second))
        ]
        given.append(emit("Concat", parts, name, axis=0))
    # An axis of its own for the direction costs nothing here, and a node at each step there.
    given += [
        emit("Unsqueeze", [node.input[states], _SECOND], f"{prefix}.gates.{d}")
        for d, node in enumerate((first, second))
    ]
    both = [f"{prefix}.result{k}" for k in range(states)]
    apart = [(f"{prefix}.output{k}.0", f"{prefix}.output{k}.1") for k in range(outputs - states)]
    directions: dict[str, Any] = {"scan_input_directions": [0, 1]}
    if apart:
        directions["scan_output_directions"] = [0, 1] * len(apart)
    made.append(
        helper.make_node(
            "Scan",
            given,
            [*both, *itertools.chain(*apart)],
            name=prefix,
            body=_body(first, second, prefix, states),
            num_scan_inputs=2,
            **directions,
        )
    )
    for k, name in enumerate(both):
        parts = [f"{name}.0", f"{name}.1"]
        made.append(helper.make_node("Split", [name], parts, name=name, axis=0, num_outputs=2))
        for part, node in zip(parts, (first, second), strict=True):
            emit("Squeeze", [part, _FIRST], node.output[k])
    for k, pair in enumerate(apart):
        for part, node in zip(pair, (first, second), strict=True):
            emit("Squeeze", [part, _SECOND], node.output[states + k])
    return made


def _body(first: Any, second: Any, prefix: str, states: int) -> Any:
    """Return the steps of both directions, side by side."""
    from onnx import helper, numpy_helper

    one, other = (next(bodies_of(node)) for node in (first, second))
    arrays = [{x.name: numpy_helper.to_array(x) for x in body.initializer} for body in (one, other)]
    held: dict[str, Any] = {}
    gates = one.input[states].name
    nodes = [helper.make_node("Concat", [f"{gates}.0", f"{gates}.1"], [gates], name=gates, axis=0)]

    def both(name: str, twin: str, transposed: bool) -> str:
        pair = [arrays[0][name], arrays[1][twin]]
        # As for a matrix that is held transposed, behind the name.
        mark = ".T" if transposed else ""
        made = f"{name}{mark}+{twin}{mark}"
        held[made] = np.stack([each.T if transposed else each[None] for each in pair])
        return made

    copied: dict[str, str] = {}
    for a, b in zip(one.node, other.node, strict=True):
        if a.op_type == "Identity" and a.output[0] in {each.name for each in one.output[states:]}:
            # Taking it apart makes copies.
            copied[a.output[0]] = a.input[0]
        elif a.op_type == "Gemm":
            x, name = a.input[0], a.output[0]
            weight = both(a.input[1], b.input[1], True)
            product = f"{name}.product" if len(a.input) > 2 else name
            nodes.append(helper.make_node("MatMul", [x, weight], [product], name=product))
            if len(a.input) > 2:
                added = a.input[2]
                added = both(added, b.input[2], False) if added in arrays[0] else added
                nodes.append(helper.make_node("Add", [product, added], [name], name=name))
        else:
            node = type(a).FromString(a.SerializeToString())
            if node.op_type == "Split":
                next(each for each in node.attribute if each.name == "axis").i = 2
                held |= {each: arrays[0][each] for each in node.input if each in arrays[0]}
            nodes.append(node)

    def info(value: Any, name: str, directions: int) -> Any:
        batch, width = value.type.tensor_type.shape.dim
        shape = [directions, batch.dim_param or batch.dim_value or None, width.dim_value]
        return helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, shape)

    inputs = [info(each, each.name, 2) for each in one.input[:states]]
    inputs += [info(one.input[states], f"{gates}.{d}", 1) for d in range(2)]
    outputs = [info(each, each.name, 2) for each in one.output[:states]]
    for each in one.output[states:]:
        parts = [f"{each.name}.{d}" for d in range(2)]
        nodes.append(
            helper.make_node(
                "Split",
                [copied.get(each.name, each.name)],
                parts,
                name=f"{each.name}.parts",
                axis=0,
                num_outputs=2,
            )
        )
        outputs += [info(each, part, 1) for part in parts]
    weights = [numpy_helper.from_array(np.ascontiguousarray(each), name) for name, each in held.items()]
    return helper.make_graph(nodes, prefix, inputs, outputs, weights)
