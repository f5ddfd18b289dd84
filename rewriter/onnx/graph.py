"""Small operations on an ONNX model in memory; nothing here imports onnx before it is called."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from passes.errors import RewriteError

# As torch.export names sizes: of inputs, and those that depend on values.
_SYMBOL = re.compile(r"\b[su]\d+\b")
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, or function, and of all graphs inside them (bodies of loops, branches)."""
    for node in graph.node:
        yield node
        for body in bodies_of(node):
            yield from nodes_of(body)


def bodies_of(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def count_operators(proto: Any) -> dict[str, int]:
    """Count the operators of a model, by name; those of other domains are named ``domain::Name``."""
    counts: Counter[str] = Counter()
    for graph in (proto.graph, *proto.functions):
        counts.update(operator_name(node) for node in nodes_of(graph))
    return dict(sorted(counts.items()))


def operator_name(node: Any) -> str:
    """Name a node's operator; the domain of the standard ones goes without saying."""
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def rename_values(graph: Any, names: Mapping[str, str]) -> None:
    """Rename inputs, outputs, initializers and values, in inner graphs too."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for body in bodies_of(node):
            rename_values(body, names)


def name_interface(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of a graph, as many as it has; other values make way."""
    separate_outputs(graph)
    names = dict(zip((each.name for each in graph.input), inputs, strict=True))
    names |= dict(zip((each.name for each in graph.output), outputs, strict=True))
    taken = set(names.values())
    known = {each.name for each in graph.initializer}
    known.update(name for node in nodes_of(graph) for name in (*node.input, *node.output))
    names |= {name: f"{name}.inner" for name in known if name in taken and name not in names}
    rename_values(graph, names)


def name_axes(graph: Any, names: Mapping[str, str]) -> None:
    """Give free axes their names, also in formulas; others that torch named get one, too."""
    inner = [body for node in nodes_of(graph) for body in bodies_of(node)]
    bodies = [value for body in inner for value in (*body.input, *body.output, *body.value_info)]
    values = (*graph.input, *graph.output, *graph.value_info, *bodies)
    known = dict(names)
    fresh = (f"length_{k}" if k else "length" for k in itertools.count())

    def name(found: re.Match[str]) -> str:
        if found[0] not in known:
            known[found[0]] = next(each for each in fresh if each not in names.values())
        return known[found[0]]

    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _SYMBOL.sub(name, dim.dim_param)


def shape_of(value: Any) -> tuple[int | str, ...]:
    """Read the shape of an input or output: sizes, and names of free axes."""
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def opset_of(proto: Any) -> int:
    """Return the version of the operator set of a model."""
    return next((int(each.version) for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)


def drop_shapes(graph: Any) -> None:
    """Leave out the shapes of inner values: runtimes find them, and some stumble over names in them."""
    for each in (graph, *(body for node in nodes_of(graph) for body in bodies_of(node))):
        each.ClearField("value_info")


def tidy(proto: Any) -> Any:
    """Drop what is unused or only says where a node came from, and infer the shape of every value.

    Raises:
        RewriteError: if onnx cannot infer them.

    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.from_proto(proto)
    for each in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        each(model)
    model.graph.name = "rewritten"
    return with_shapes(ir.to_proto(model))


def with_shapes(proto: Any, caller: str = "export_onnx") -> Any:
    """Infer the shape of every value; ``caller`` begins the message of an error.

    Raises:
        RewriteError: if onnx cannot infer them.

    """
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # its exceptions have no common base but this
        raise RewriteError(f"{caller}: onnx does not find the shapes in the graph: {error}") from error


def separate_outputs(graph: Any) -> None:
    """Give each output a value of its own: a model may return one value twice, or an input."""
    import onnx

    seen = {each.name for each in graph.input} | {each.name for each in graph.initializer}
    for k, output in enumerate(graph.output):
        if output.name in seen:
            source, output.name = output.name, f"{output.name}.output{k}"
            graph.node.append(onnx.helper.make_node("Identity", [source], [output.name], name=output.name))
        seen.add(output.name)
