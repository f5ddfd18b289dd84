"""Write the steps of a recurrence as ONNX nodes, where a placeholder stood for them."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn

from passes.errors import PassError, RewriteError
from passes.leaves import Mul, ReLUAtom, SigmoidAtom, TanhAtom
from rewriter.onnx.recurrences.deferred import DOMAIN, Deferred, DeferredCell, DeferredRecurrence
from rewriter.onnx.recurrences.directions import join_directions
from rewriter.onnx.recurrences.packed_steps import packed
from rewriter.onnx.recurrences.weights import add_bias, move_weights

_ATOMS: Mapping[type[nn.Module], str] = {
    SigmoidAtom: "Sigmoid",
    TanhAtom: "Tanh",
    ReLUAtom: "Relu",
    Mul: "Mul",
}
_FUNCTIONS: Mapping[Any, str] = {operator.add: "Add", operator.sub: "Sub"}

Value = str | tuple[str, ...]


def write_steps(graph: Any, deferred: Mapping[int, Deferred], *, loops: bool) -> None:
    """Replace each placeholder node of an ONNX ``graph`` by its steps.

    Args:
        graph: an ``onnx.GraphProto``, changed in place.
        deferred: what :func:`defer_steps` returned.
        loops: make a Scan of each recurrence, for any length.

    """
    from onnx import TensorProto, helper

    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(each.name for each in graph.output)
    known = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    weights = {each.name for each in graph.initializer}
    calls: Counter[int] = Counter()
    sizes: dict[str, tuple[int, ...]] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        key = _attribute(node, "key").i
        writer = _Writer(deferred[key], node, calls[key], known[node.input[0]], loops=loops)
        calls[key] += 1
        if writer.bias is not None:
            gates = node.input[0]
            node.input[0] = add_bias(
                gates, writer.bias, writer.prefix, nodes, weights, alone=uses[gates] == 1
            )
        if isinstance(deferred[key], DeferredCell):
            writer.write_cell()
        elif loops:
            writer.write_scan(output_used=uses[node.output[0]] > 0)
        else:
            writer.write_flat(output_used=uses[node.output[0]] > 0)
        nodes += writer.nodes
        sizes |= writer.sizes
    graph.ClearField("node")
    graph.node.extend(nodes)
    for name, each in sizes.items():
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(each)], each))
    move_weights(graph)
    join_directions(graph)


def widths_of(graph: Any) -> dict[int, list[int]]:
    """Return the number of features of what comes into a step and of each state, by the placeholder's key."""
    nodes = [node for node in graph.node if node.domain == DOMAIN]
    return {_attribute(node, "key").i: list(_attribute(node, "features").ints) for node in nodes}


@dataclass(frozen=True)
class _Sum:
    """The sum of the gates' parts in the graph of a step: what comes in, and a product with the state."""

    gates: fx.Node
    hidden: fx.Node
    total: fx.Node


def _sum_of_gates(deferred: Deferred, graph: fx.Graph) -> _Sum | None:
    """Return the sum, None where the parts are needed apart, as in a GRU, or none comes in, as in a cell."""
    if not isinstance(deferred, DeferredRecurrence) or deferred.exported:
        return None
    gates = next(node for node in graph.nodes if node.op == "placeholder")
    hidden = next((node for node in graph.nodes if node.target == "hidden"), None)
    if hidden is None or not isinstance(deferred.hidden, nn.Linear) or set(gates.users) != set(hidden.users):
        return None
    total = next(iter(gates.users))
    return _Sum(gates, hidden, total) if len(gates.users) == 1 and total.target is operator.add else None


class _Writer:
    """Writes the ONNX nodes that one placeholder stands for."""

    def __init__(self, deferred: Deferred, node: Any, call: int, x: Any, *, loops: bool) -> None:
        self.deferred = deferred
        self.node = node
        self.states = deferred.body.states
        #: Written once, each value says where it is; written at every step, most of the file would be names.
        self.named = loops or isinstance(deferred, DeferredCell)
        name = deferred.name if self.named else f"r{deferred.key}"
        self.prefix = name + (f".call{call}" if call else "")
        self.initial = tuple(node.input[1 : 1 + self.states])
        following = list(node.input[1 + self.states :])
        #: True where a step counts, or None.
        self.mask = following.pop() if len(following) > len(deferred.weights) else None
        self.weights = dict(zip(deferred.weights, following, strict=True))
        self.features = list(_attribute(node, "features").ints)
        self.graph = fx.Graph()
        if not deferred.exported:
            self.graph = packed(deferred.graph, deferred.body, deferred.widths(self.features))
        #: The sum of both parts of the gates, if a matrix product can do it, too.
        self.sum = _sum_of_gates(deferred, self.graph)
        has_bias = self.sum is not None and deferred.body.hidden.bias is not None
        self.bias = self.weights["hidden.bias"] if has_bias else None
        self.type = x.type.tensor_type.elem_type
        self.shape: list[int | str | None] = [
            dim.dim_param or dim.dim_value or None for dim in x.type.tensor_type.shape.dim
        ]
        self.batch = self.shape[-2]
        self.nodes: list[Any] = []
        #: Sizes of parts and shapes, by name.
        self.sizes: dict[str, tuple[int, ...]] = {}

    def emit(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        from onnx import helper

        name = outputs[0] if self.named else None
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))

    def info(self, name: str, shape: Sequence[int | str | None], type: int | None = None) -> Any:
        from onnx import helper

        return helper.make_tensor_value_info(name, type or self.type, shape)

    def _layer(self) -> str:
        """Return the name of the user's layer."""
        return re.sub(r"(^|\.)layer\d+\.\w+$", "", self.deferred.name) or "the model itself"

    def write_cell(self) -> None:
        self.rename(self.step(self.node.input[0], self.initial, self.prefix), self.node.output)

    def write_flat(self, *, output_used: bool) -> None:
        """Write every step out."""
        length = self.shape[0]
        if not isinstance(length, int):
            raise RewriteError(
                f"{self._layer()}: the number of steps is free: the layer reads as time an axis that "
                "batch_axes or dynamic_axes names; name another one, or export with loops=True"
            )
        places = [f"{self.prefix}.t{t}" for t in range(length)]
        gates = self._parted(self.node.input[0], self.features[0], places, "x")
        masks = [None] * length if self.mask is None else self._parted(self.mask, 1, places, "m")
        state = self.initial
        outputs = [""] * length
        for t in reversed(range(length)) if self.deferred.reverse else range(length):
            state = self.step(gates[t], state, places[t], masks[t])
            outputs[t] = state[0]
        if output_used:
            # Side by side, each row's: no step needs an axis of its own.
            width, joined, rows = self.features[1], f"{self.prefix}.y", f"{self.prefix}.y_rows"
            self.emit("Concat", outputs, [joined], axis=1)
            self.emit("Reshape", [joined, self._constant((0, length, width))], [rows])
            self.emit("Transpose", [rows], [self.node.output[0]], perm=[1, 0, 2])
        self.rename(state, self.node.output[1:])

    def _parted(self, source: str, width: int, places: Sequence[str], name: str) -> list[str]:
        """Write what takes apart, step by step, a value of (T, B, width)."""
        rows, joined = f"{self.prefix}.{name}_rows", f"{self.prefix}.{name}"
        self.emit("Transpose", [source], [rows], perm=[1, 0, 2])
        self.emit("Reshape", [rows, self._constant((0, len(places) * width))], [joined])
        parts = [f"{place}.{name}" for place in places]
        self.emit("Split", [joined], parts, axis=1, num_outputs=len(parts))
        return parts

    def write_scan(self, *, output_used: bool) -> None:
        """Write one Scan, whose body is one step."""
        from onnx import TensorProto, helper

        prefix = f"{self.prefix}.step"
        mask = None if self.mask is None else f"{prefix}.mask"
        names = [f"{prefix}.state{k}" for k in range(self.states)]
        names[: len("hc")] = [f"{prefix}.{label}" for label in "hc"[: self.states]]
        state = self.step(f"{prefix}.gates", names, prefix, mask)
        if output_used:
            self.emit("Identity", [state[0]], [f"{prefix}.output"])
        widths = self.features
        body = helper.make_graph(
            self.nodes,
            prefix,
            [
                *(
                    self.info(name, [self.batch, width])
                    for name, width in zip(names, widths[1:], strict=True)
                ),
                self.info(f"{prefix}.gates", [self.batch, widths[0]]),
                *([] if mask is None else [self.info(mask, [self.batch, 1], TensorProto.BOOL)]),
            ],
            [
                *(
                    self.info(name, [self.batch, width])
                    for name, width in zip(state, widths[1:], strict=True)
                ),
                *([self.info(f"{prefix}.output", [self.batch, widths[1]])] if output_used else []),
            ],
        )
        self.nodes = []
        direction = [1 if self.deferred.reverse else 0]
        self.emit(
            "Scan",
            [*self.initial, self.node.input[0], *([] if self.mask is None else [self.mask])],
            [*self.node.output[1:], *([self.node.output[0]] if output_used else [])],
            body=body,
            num_scan_inputs=1 if self.mask is None else 2,
            scan_input_directions=direction if self.mask is None else 2 * direction,
            **({"scan_output_directions": direction} if output_used else {}),
        )

    def step(self, x: str, state: Sequence[str], prefix: str, mask: str | None = None) -> tuple[str, ...]:
        """Write one step; return the names of the new state. Where a mask is false the state stays."""
        new = (
            self.exported_step((x, *state), prefix)
            if self.deferred.exported
            else self._traced_step(x, state, prefix)
        )
        if mask is None:
            return new
        kept = tuple(f"{prefix}.masked_{k}" for k in range(len(new)))
        for name, a, b in zip(kept, new, state, strict=True):
            self.emit("Where", [mask, a, b], [name])
        return kept

    def _traced_step(self, x: str, state: Sequence[str], prefix: str) -> tuple[str, ...]:
        values: dict[fx.Node, Value] = {}
        incoming = iter((x, tuple(state)))
        for place, node in enumerate(self.graph.nodes):
            if node.op == "placeholder":
                values[node] = next(incoming)
            elif node.op == "output":
                return tuple(cast("str", values[each]) for each in node.args[0])
            else:
                name = node.name.removeprefix("cell_") if self.named else str(place)
                values[node] = self.operation(node, values, f"{prefix}.{name}")
        raise PassError(f"{self.deferred.name}: the trace of a step has no output")

    def exported_step(self, given: Sequence[str], prefix: str) -> tuple[str, ...]:
        """Write one step that torch has exported."""
        graph = self.deferred.exported
        names = dict(zip((each.name for each in graph.input), given, strict=True)) | {"": ""}
        for each in graph.initializer:
            # Weights are those of the model around.
            names[each.name] = self.weights.get(each.name) or f"{prefix}.{each.name}"
            if each.name not in self.weights:
                self.emit("Constant", [], [names[each.name]], value=each)
        for node in graph.node:
            copied = type(node).FromString(node.SerializeToString())
            names |= {name: f"{prefix}.{name}" for name in node.output if name}
            copied.name = names[node.output[0]]
            for field in (copied.input, copied.output):
                field[:] = [names[each] for each in field]
            self.nodes.append(copied)
        # Of its own each: a state may be another one, or what comes in.
        new = tuple(f"{prefix}.new{k}" for k in range(self.states))
        for name, each in zip(new, graph.output, strict=True):
            self.emit("Identity", [names[each.name]], [name])
        return new

    def operation(self, node: fx.Node, values: Mapping[fx.Node, Value], name: str) -> Value:
        """Write one operation of a step; return the name of its value, or the names of its values."""
        if node.target is operator.getitem:
            return values[cast("fx.Node", node.args[0])][cast("int", node.args[1])]
        if node.target is torch.split:
            source, sizes = node.args[:2]
            return self._split(_one(values, source), tuple(cast("list[int]", sizes)), name)
        if node.target is torch.cat:
            parts = tuple(_one(values, each) for each in cast("Sequence[fx.Node]", node.args[0]))
            self.emit("Concat", parts, [name], axis=node.args[1])
            return name
        module = self.deferred.body.get_submodule(str(node.target)) if node.op == "call_module" else None
        if self.sum is not None and node is self.sum.hidden:
            # It waits for what it is added to.
            return ""
        if self.sum is not None and node is self.sum.total:
            inputs = [_one(values, each) for each in (self.sum.hidden.args[0], self.sum.gates)]
            self.emit("Gemm", [inputs[0], self.weights["hidden.weight"], inputs[1]], [name], transB=1)
            return name
        inputs = [_one(values, each) for each in node.args]
        if isinstance(module, nn.Linear):
            parameters = [f"{node.target}.weight"] + [f"{node.target}.bias"] * (module.bias is not None)
            self.emit("Gemm", [*inputs, *(self.weights[each] for each in parameters)], [name], transB=1)
            return name
        op = _FUNCTIONS.get(node.target) if module is None else _ATOMS.get(type(module))
        if op is None:
            raise PassError(f"{self.deferred.name}: no ONNX operator for {node.format_node()}")
        self.emit(op, inputs, [name])
        return name

    def _split(self, source: str, sizes: tuple[int, ...], name: str) -> tuple[str, ...]:
        """Take a value apart along its last axis, which is the second."""
        parts = tuple(f"{name}_{k}" for k in range(len(sizes)))
        if len(set(sizes)) == 1:
            self.emit("Split", [source], parts, axis=1, num_outputs=len(sizes))
            return parts
        self.emit("Split", [source, self._constant(sizes)], parts, axis=1)
        return parts

    def _constant(self, sizes: tuple[int, ...]) -> str:
        """Return the name of what holds some sizes."""
        given = next((name for name, each in self.sizes.items() if each == sizes), None)
        if given is None:
            given = f"{self.prefix}.sizes{len(self.sizes)}"
            self.sizes[given] = sizes
        return given

    def rename(self, values: Sequence[str], names: Sequence[str]) -> None:
        """Let ``values`` have the names that the graph around knows them by."""
        renamed = dict(zip(values, names, strict=True))
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [renamed.get(each, each) for each in field]


def _attribute(node: Any, name: str) -> Any:
    return next(each for each in node.attribute if each.name == name)


def _one(values: Mapping[fx.Node, Value], argument: Any) -> str:
    value = values[argument]
    if not isinstance(value, str):
        raise PassError(f"expected one value, got {value}")
    return value
