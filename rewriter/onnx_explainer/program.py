"""A graph as the program that torch.onnx exports, made in one run instead of torch.export's three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, ExportGraphSignature
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Table = Mapping[Any, Callable[..., Any]]


class TracedProgram(ExportedProgram):
    """A program that is traced when torch.onnx says which operators it does not know.

    Args:
        trace: takes a table of what becomes of those operators, returns a graph without them.
        inputs: the number of its inputs.
        fixed: tensors that it holds in the place of some of them.
        weights: names of tensors, by the address of their memory; others get names of their own.

    """

    def __init__(
        self,
        trace: Callable[[Table], fx.GraphModule],
        inputs: int,
        fixed: Mapping[int, Tensor],
        weights: Mapping[int, str],
    ) -> None:
        self.trace, self.inputs, self.fixed, self.weights = trace, inputs, fixed, weights

    def run_decompositions(self, decomp_table: Any = None, decompose_custom_triton_ops: bool = False) -> Any:
        """Return the program, without the operators in the table."""
        graph = self.trace(decomp_table or {})
        state = _lift(graph, self.weights)
        graph.recompile()
        placeholders = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        targets: list[str | None] = [*state, *[None] * self.inputs]
        held = len(state)
        for place, tensor in self.fixed.items():
            name = f"background.{place}"
            targets[held + place] = name
            state[name] = tensor
        specs = [
            InputSpec(InputKind.USER_INPUT, TensorArgument(name), None)
            if target is None
            else InputSpec(InputKind.BUFFER, TensorArgument(name), target, True)
            for name, target in zip(placeholders, targets, strict=True)
        ]
        (results,) = next(iter(reversed(graph.graph.nodes))).args
        given = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(each.name), None) for each in results]
        leaf = pytree.tree_structure(0)
        inner = pytree.tree_structure((tuple(range(self.inputs - len(self.fixed))), {}))
        signature = torch.export.ModuleCallSignature(
            [], [], inner, pytree.tree_structure(tuple(range(len(results)))) if results else leaf
        )
        return ExportedProgram(
            graph,
            graph.graph,
            ExportGraphSignature(specs, given),
            state,
            {},
            [torch.export.ModuleCallEntry("", signature)],
        )


def functional(graph: Callable[..., Any], inputs: Sequence[Tensor], table: Table) -> fx.GraphModule:
    """Note a graph once more, without writes in place and without the operators of a table."""
    made = make_fx(
        torch.func.functionalize(graph), dict(table), tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(*inputs)
    made.graph.eliminate_dead_code()
    return made


def _lift(graph: fx.GraphModule, weights: Mapping[int, str]) -> dict[str, Tensor]:
    """Make inputs of the tensors that a graph holds; return them, by name, in the order of those inputs."""
    state: dict[str, Tensor] = {}
    placed: dict[Any, fx.Node] = {}
    first = next(iter(graph.graph.nodes))
    for node in [each for each in graph.graph.nodes if each.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        # A weight may be held by several names, in one memory.
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        if key not in placed:
            name = weights.get(key[0], "constant")
            name = f"{name}.{len(state)}" if name in state or name == "constant" else name
            state[name] = tensor.detach()
            with graph.graph.inserting_before(first):
                placed[key] = graph.graph.placeholder(f"held_{len(state)}")
            placed[key].meta.update(node.meta)
        node.replace_all_uses_with(placed[key])
        graph.graph.erase_node(node)
    return state
