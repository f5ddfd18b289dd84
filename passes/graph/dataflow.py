"""Which values of a graph are tensors that vary with its inputs."""

from __future__ import annotations

from typing import Any

from torch import fx

from passes.graph.writes import write_of
from passes.operations.catalogue import is_blind, is_discrete


class Dataflow:
    """What depends on the placeholders of a graph.

    Args:
        graph: as traced.

    Example:
        >>> import torch
        >>> class Model(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.exp() * x.shape[0]
        >>> graph = fx.symbolic_trace(Model()).graph
        >>> [node.name for node in Dataflow(graph).varying]
        ['x', 'exp', 'mul']

    """

    def __init__(self, graph: fx.Graph) -> None:
        #: Floating-point tensors, and tuples of them, in the order of the graph.
        self.varying: dict[fx.Node, None] = {}
        #: Masks, indices and numbers that are read off such tensors.
        self.discrete: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.varying[node] = None
            elif node.op in ("call_function", "call_method", "call_module"):
                self.follow(node)

    def follow(self, node: fx.Node) -> None:
        """Classify one node whose inputs are classified."""
        if node.op != "call_module" and self._is_blind(node):
            return
        if any(each in self.varying for each in node.all_input_nodes):
            (self.discrete if _is_discrete(node) else self.varying)[node] = None
            write = write_of(node)
            if write is not None:
                self._write(write.written)
        elif any(each in self.discrete for each in node.all_input_nodes):
            self.discrete[node] = None

    def _is_blind(self, node: fx.Node) -> bool:
        if node.target is getattr:
            return is_blind(node.args[1])
        return is_blind(
            node.target, node.args, node.kwargs, lambda each: self.varies(each) or self.is_discrete(each)
        )

    def _write(self, tensor: Any) -> None:
        """A value is written into ``tensor``, hence into all that may share its memory."""
        while isinstance(tensor, fx.Node) and tensor not in self.varying and tensor.op.startswith("call_"):
            self.varying[tensor] = None
            for user in tensor.users:
                if user not in self.varying and user.op != "output":
                    self.follow(user)
            tensor = tensor.args[0] if tensor.args else None

    def varies(self, value: Any) -> bool:
        """Whether an argument is, or holds, a tensor that varies with the inputs."""
        return any(each in self.varying for each in nodes_in(value))

    def is_discrete(self, value: Any) -> bool:
        """Whether an argument is, or holds, a mask, index or number that is read off such tensors."""
        return any(each in self.discrete for each in nodes_in(value))


def nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in an argument: in tuples, lists, dictionaries and slices.

    Example:
        >>> x = fx.Graph().placeholder("x")
        >>> nodes_in((slice(None, x), {"a": [x, 1]}))
        [x, x]

    """
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _is_discrete(node: fx.Node) -> bool:
    return node.op != "call_module" and node.target is not getattr and is_discrete(node.target)
