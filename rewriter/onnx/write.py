"""Write the steps of a recurrence as ONNX nodes, where a placeholder stood for them."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from passes.errors import PassError, RewriteError
from passes.leaves import Mul, ReLUAtom, SigmoidAtom, TanhAtom
from rewriter.onnx.steps import DOMAIN, Deferred, DeferredCell

# No parameter of a model is called this.
_AXES_0 = "rewriter.axes_0"
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
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    known = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    calls: dict[int, int] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        key = _attribute(node, "key").i
        calls[key] = calls.get(key, -1) + 1
        writer = _Writer(deferred[key], node, calls[key], known[node.input[0]])
        if isinstance(deferred[key], DeferredCell):
            writer.write_cell()
        elif loops:
            writer.write_scan()
        else:
            writer.write_flat(output_used=node.output[0] in used)
        nodes += writer.nodes
        graph.value_info.extend(info for info in writer.infos if info.name not in known)
    graph.ClearField("node")
    graph.node.extend(nodes)
    if any(_AXES_0 in node.input for node in nodes):
        import onnx

        graph.initializer.append(onnx.helper.make_tensor(_AXES_0, onnx.TensorProto.INT64, [1], [0]))


class _Writer:
    """Writes the ONNX nodes that one placeholder stands for."""

    def __init__(self, deferred: Deferred, node: Any, call: int, x: Any) -> None:
        self.deferred = deferred
        self.node = node
        self.states = deferred.body.states
        self.prefix = deferred.name + (f".call{call}" if call else "")
        self.initial = tuple(node.input[1 : 1 + self.states])
        following = list(node.input[1 + self.states :])
        #: True where a step counts, or None.
        self.mask = following.pop() if len(following) > len(deferred.weights) else None
        self.weights = dict(zip(deferred.weights, following, strict=True))
        self.features = list(_attribute(node, "features").ints)
        self.widths = {} if deferred.exported else deferred.widths(self.features)
        self.type = x.type.tensor_type.elem_type
        self.shape: list[int | str | None] = [
            dim.dim_param or dim.dim_value or None for dim in x.type.tensor_type.shape.dim
        ]
        self.batch = self.shape[-2]
        self.nodes: list[Any] = []
        self.infos: list[Any] = []

    def emit(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))

    def info(self, name: str, shape: Sequence[int | str | None], type: int | None = None) -> Any:
        from onnx import helper

        return helper.make_tensor_value_info(name, type or self.type, shape)

    def describe(self, name: str, shape: Sequence[int | str | None]) -> str:
        """Say the shape of a value: a runtime loads a long graph slowly if it has to infer them."""
        self.infos.append(self.info(name, shape))
        return name

    def describe_all(self, value: Value, widths: Sequence[int]) -> None:
        """Say the shape of each part of a value of one step."""
        for name, width in zip((value,) if isinstance(value, str) else value, widths, strict=True):
            self.describe(name, [self.batch, width])

    def _layer(self) -> str:
        """Return the name of the user's layer."""
        return re.sub(r"(^|\.)layer\d+\.\w+$", "", self.deferred.name) or "the model itself"

    def write_cell(self) -> None:
        self.rename(self.step(self.node.input[0], self.initial, self.prefix), self.node.output)

    def write_flat(self, *, output_used: bool) -> None:
        """Write every step out."""
        length, width = self.shape[0], self.shape[-1]
        if not isinstance(length, int):
            raise RewriteError(
                f"{self._layer()}: the number of steps is free: the layer reads as time an axis that "
                "batch_axes or dynamic_axes names; name another one, or export with loops=True"
            )
        places = [f"{self.prefix}.t{t}" for t in range(length)]
        sliced = [self.describe(f"{place}.gates_1", [1, self.batch, width]) for place in places]
        self.emit("Split", [self.node.input[0]], sliced, axis=0, num_outputs=length)
        masks = self._masks(places)
        state = self.initial
        outputs = [""] * length
        for t in reversed(range(length)) if self.deferred.reverse else range(length):
            gates = self.describe(f"{places[t]}.gates", [self.batch, width])
            self.emit("Squeeze", [sliced[t], _AXES_0], [gates])
            state = self.step(gates, state, places[t], masks[t])
            if output_used:
                outputs[t] = self.describe(f"{places[t]}.output", [1, self.batch, self.features[1]])
                self.emit("Unsqueeze", [state[0], _AXES_0], [outputs[t]])
        if output_used:
            self.emit("Concat", outputs, [self.node.output[0]], axis=0)
        self.rename(state, self.node.output[1:])

    def _masks(self, places: Sequence[str]) -> list[str | None]:
        """Write what takes the mask of each step, if there is one."""
        if self.mask is None:
            return [None] * len(places)
        sliced = [f"{place}.mask_1" for place in places]
        self.emit("Split", [self.mask], sliced, axis=0, num_outputs=len(places))
        masks: list[str | None] = [f"{place}.mask" for place in places]
        for each, mask in zip(sliced, masks, strict=True):
            self.emit("Squeeze", [each, _AXES_0], [str(mask)])
        return masks

    def write_scan(self) -> None:
        """Write one Scan, whose body is one step."""
        from onnx import TensorProto, helper

        prefix = f"{self.prefix}.step"
        mask = None if self.mask is None else f"{prefix}.mask"
        names = [f"{prefix}.state{k}" for k in range(self.states)]
        names[: len("hc")] = [f"{prefix}.{label}" for label in "hc"[: self.states]]
        state = self.step(f"{prefix}.gates", names, prefix, mask)
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
                self.info(f"{prefix}.output", [self.batch, widths[1]]),
            ],
        )
        self.nodes, self.infos = [], []
        direction = [1 if self.deferred.reverse else 0]
        self.emit(
            "Scan",
            [*self.initial, self.node.input[0], *([] if self.mask is None else [self.mask])],
            [*self.node.output[1:], self.node.output[0]],
            body=body,
            num_scan_inputs=1 if self.mask is None else 2,
            scan_input_directions=direction if self.mask is None else 2 * direction,
            scan_output_directions=direction,
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
        for name, a, b, width in zip(kept, new, state, self.features[1:], strict=True):
            self.emit("Where", [mask, a, b], [self.describe(name, [self.batch, width])])
        return kept

    def _traced_step(self, x: str, state: Sequence[str], prefix: str) -> tuple[str, ...]:
        values: dict[fx.Node, Value] = {}
        incoming = iter((x, tuple(state)))
        for node in self.deferred.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(incoming)
            elif node.op == "output":
                return tuple(cast("str", values[each]) for each in node.args[0])
            else:
                values[node] = self.operation(node, values, f"{prefix}.{node.name.removeprefix('cell_')}")
                if node.target is not operator.getitem:
                    self.describe_all(values[node], self.widths[node])
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
        if node.target == "chunk":
            source, count, axis = node.args
            parts = tuple(f"{name}_{k}" for k in range(cast("int", count)))
            self.emit("Split", [_one(values, source)], parts, axis=axis, num_outputs=count)
            return parts
        if node.target is torch.cat:
            parts = tuple(_one(values, each) for each in cast("Sequence[fx.Node]", node.args[0]))
            self.emit("Concat", parts, [name], axis=node.args[1])
            return name
        inputs = [_one(values, each) for each in node.args]
        module = self.deferred.body.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            parameters = [f"{node.target}.weight"] + [f"{node.target}.bias"] * (module.bias is not None)
            self.emit("Gemm", [*inputs, *(self.weights[each] for each in parameters)], [name], transB=1)
            return name
        op = _FUNCTIONS.get(node.target) if module is None else _ATOMS.get(type(module))
        if op is None:
            raise PassError(f"{self.deferred.name}: no ONNX operator for {node.format_node()}")
        self.emit(op, inputs, [name])
        return name

    def rename(self, values: Sequence[str], names: Sequence[str]) -> None:
        """Let ``values`` have the names that the graph around knows them by."""
        renamed = dict(zip(values, names, strict=True))
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [renamed.get(each, each) for each in field]
        self.infos = [each for each in self.infos if each.name not in renamed]


def _attribute(node: Any, name: str) -> Any:
    return next(each for each in node.attribute if each.name == name)


def _one(values: Mapping[fx.Node, Value], argument: Any) -> str:
    value = values[argument]
    if not isinstance(value, str):
        raise PassError(f"expected one value, got {value}")
    return value
