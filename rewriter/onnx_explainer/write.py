"""Write a graph of an explanation as ONNX, its loops as Scans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from passes.errors import RewriteError
from rewriter.onnx.graph import name_axes, name_interface, shape_of
from rewriter.onnx_explainer.program import Table, TracedProgram, functional
from rewriter.onnx_explainer.scans import DOMAIN, Loop
from rewriter.onnx_explainer.trace import Traced

#: What bodies are called in the graph in which they are exported.
_BODY = "loop"
# Sizes and indices have few numbers, weights many.
_SMALL = 64


def to_onnx(noted: Traced, fixed: Sequence[Tensor], weights: Mapping[int, str], *, opset: int) -> Any:
    """Export a graph and its loops; returns an ``onnx.ModelProto``.

    Args:
        noted: the graph.
        fixed: the last of its inputs, that are to be held by the file.
        weights: names of tensors in it, by the address of their memory.
        opset: version of the ONNX operator set.

    """
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    own = len(noted.inputs)
    # Bodies are exported beside the graph: one export takes less time than many.
    inputs = [
        *noted.inputs,
        *(noted.like(*each) for loop in noted.loops for each in zip(loop.sizes, loop.dtypes, strict=True)),
    ]

    def together(*given: Tensor) -> tuple[Tensor, ...]:
        results = [*noted.graph(*given[:own])]
        begin = own
        for loop in noted.loops:
            results += loop.body(*given[begin : begin + len(loop.sizes)])
            begin += len(loop.sizes)
        return tuple(results)

    def trace(table: Table) -> fx.GraphModule:
        with noted.mode:
            return functional(together, inputs, table)

    if any(_is_complex(node) for node in noted.graph.graph.nodes):
        raise RewriteError(
            "export_explainer_onnx: the explanation of the model takes complex numbers, as between a Fourier "
            "transform and its inverse, which have no form in ONNX"
        )
    given = own - len(fixed)
    program = TracedProgram(trace, len(inputs), dict(enumerate(fixed, given)), weights)
    try:
        exported = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, optimize=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise RewriteError(_without_form(error)) from error
    assert exported is not None
    model = exported.model
    fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=_SMALL,
        output_size_limit=_SMALL,
        # Weights are stored once; a transposed copy would be one more.
        should_fold=lambda node: False if node.op_type in ("Transpose", "Split") else None,
    )
    _tidy(model)
    # Behind the passes: they would take out the copies that a Scan's body needs.
    _put_loops(model, noted.loops, given)
    common.TopologicalSortPass()(model)
    return ir.to_proto(model)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()


def _without_form(error: BaseException) -> str:
    """Say which operator has no form in ONNX."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error)
    found = re.search(r"OpOverload\(op='(?:aten|prims)\.(\w+)'", said)
    if found:
        return (
            f"export_explainer_onnx: torch.{found[1]}, which the explanation of the model takes, has no form "
            "in ONNX; leave it out of the model, or put it in front of what is explained"
        )
    return f"export_explainer_onnx: torch.onnx cannot export the explanation: {said.strip().splitlines()[0]}"


def _put_loops(model: Any, loops: Sequence[Loop], count: int) -> None:
    """Take the bodies out of the graph and put each into the Scan that it belongs to."""
    graph = model.graph
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    nodes = {node.attributes["key"].as_int(): node for node in graph if node.domain == DOMAIN}
    begin = count
    end = len(outputs)
    first = end - sum(each.results for each in loops)
    begin_out = first
    while len(graph.outputs) > first:
        graph.outputs.pop()
    while len(graph.inputs) > count:
        graph.inputs.pop()
    for key, loop in enumerate(loops):
        taken = inputs[begin : begin + len(loop.sizes)]
        given = outputs[begin_out : begin_out + loop.results]
        begin += len(loop.sizes)
        begin_out += loop.results
        _put(graph, nodes[key], loop, taken, given, f"{_BODY}{key}")


def _put(graph: Any, node: Any, loop: Loop, taken: list[Any], given: list[Any], prefix: str) -> None:
    import onnx_ir as ir

    moving = loop.states + loop.sequences
    # What is the same at all steps is taken from the graph around.
    for inner, outer in zip(taken[moving:], node.inputs[moving:], strict=True):
        ir.convenience.replace_all_uses_with(inner, outer)
        given = [outer if each is inner else each for each in given]
    body = _body_nodes(graph, taken[:moving])
    graph.remove(body)
    results = []
    for k, each in enumerate(given):
        if each in taken or each in given[:k] or each.producer() not in body:
            copy = ir.node("Identity", [each], name=f"copy{k}")
            copy.outputs[0].name = f"copy{k}"
            copy.outputs[0].shape, copy.outputs[0].type = each.shape, each.type
            body.append(copy)
            each = copy.outputs[0]
        results.append(each)
    for inner in body:
        inner.name = f"{prefix}.{inner.name}"
        for value in inner.outputs:
            value.name = f"{prefix}.{value.name}"
    for k, value in enumerate(taken[:moving]):
        value.name = f"{prefix}.in{k}"
    direction = [int(loop.reverse)]
    scanned = ir.Graph(taken[:moving], results, nodes=body, name=prefix)
    scan = ir.node(
        "Scan",
        node.inputs[:moving],
        attributes={
            "body": scanned,
            "num_scan_inputs": loop.sequences,
            "scan_input_directions": direction * loop.sequences,
            "scan_output_directions": direction * (loop.results - loop.states),
        },
        outputs=[ir.Value(name=each.name, shape=each.shape, type=each.type) for each in node.outputs],
        name=f"{loop.name}.{prefix}",
    )
    ir.convenience.replace_nodes_and_values(graph, node, [node], [scan], node.outputs, scan.outputs)


def _body_nodes(graph: Any, taken: Sequence[Any]) -> list[Any]:
    """Return the nodes that depend on what changes from step to step; all others stay outside."""
    changing = set(taken)
    body = []
    for node in graph:
        if node.domain != DOMAIN and not changing.isdisjoint(node.inputs):
            body.append(node)
            changing.update(node.outputs)
    return body


def _tidy(model: Any) -> None:
    """Drop what is unused, twice there, or only says where something came from."""
    from onnx_ir.passes import common

    for each in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        each(model)


def named(proto: Any, inputs: Sequence[str], outputs: Sequence[str], names: Sequence[str]) -> None:
    """Name inputs, outputs and free axes."""
    name_interface(proto.graph, inputs, outputs)
    axes = [each for value in proto.graph.input for each in shape_of(value) if isinstance(each, str)]
    name_axes(proto.graph, dict(zip(dict.fromkeys(axes), names, strict=False)))
