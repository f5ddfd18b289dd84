"""Which values of a graph are tensors that vary with its inputs."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from passes.graph.writes import write_of

# What these return depends on shapes, types and devices only.
_OF_SHAPE_METHODS = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "get_device", "type",
    "is_floating_point", "is_contiguous", "new_zeros", "new_ones", "new_full", "new_empty", "__len__",
}  # fmt: skip
_OF_SHAPE_FUNCTIONS = {
    len, isinstance, torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like,
    torch.randn_like, torch.numel, torch.is_tensor,
}  # fmt: skip
_OF_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "itemsize"}
# What these return has no slope: true or false, or a whole number.
_STEP_FUNCTIONS = {
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_,
    operator.invert, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.isnan, torch.isinf,
    torch.isfinite, torch.argmax, torch.argmin, torch.argsort, torch.logical_not, torch.logical_and,
    torch.logical_or, torch.logical_xor, torch.nonzero, torch.any, torch.all, torch.isclose, torch.equal,
    torch.searchsorted, torch.bucketize, torch.count_nonzero,
}  # fmt: skip
_STEP_METHODS = {
    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "argmax", "argmin", "argsort",
    "logical_not", "logical_and", "logical_or", "logical_xor", "nonzero", "any", "all", "long", "int", "bool",
    "byte", "short", "item", "tolist", "count_nonzero",
}  # fmt: skip


class Dataflow:
    """What depends on the placeholders of a graph.

    Args:
        graph: as traced.

    Example:
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
        self.steps: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.varying[node] = None
            elif node.op in ("call_function", "call_method", "call_module"):
                self.follow(node)

    def follow(self, node: fx.Node) -> None:
        """Classify one node whose inputs are classified."""
        if node.op != "call_module" and _of_shape(node):
            return
        if any(each in self.varying for each in node.all_input_nodes):
            self._into(self.steps if _is_step(node) else self.varying, node)
            write = write_of(node)
            if write is not None:
                self._write(write.written)
        elif any(each in self.steps for each in node.all_input_nodes):
            self._into(self.steps, node)

    def _into(self, found: dict[fx.Node, None], node: fx.Node) -> None:
        found[node] = None

    def _write(self, tensor: Any) -> None:
        """A value is written into ``tensor``, hence into all that may share its memory."""
        while isinstance(tensor, fx.Node) and tensor not in self.varying and tensor.op.startswith("call_"):
            self._into(self.varying, tensor)
            for user in tensor.users:
                if user not in self.varying and user.op != "output":
                    self.follow(user)
            tensor = tensor.args[0] if tensor.args else None

    def varies(self, value: Any) -> bool:
        """Whether an argument is, or holds, a tensor that varies with the inputs."""
        if isinstance(value, fx.Node):
            return value in self.varying
        if isinstance(value, Mapping):
            return self.varies(list(value.values()))
        if isinstance(value, Iterable) and not isinstance(value, str):
            return any(self.varies(each) for each in value)
        return False


def is_of_shape(name: str) -> bool:
    """Whether what a function or method returns depends on shapes, types and devices only.

    Example:
        >>> is_of_shape("new_zeros"), is_of_shape("exp")
        (True, False)

    """
    return name in _OF_SHAPE_METHODS or any(name == each.__name__ for each in _OF_SHAPE_FUNCTIONS)


def is_step(name: str) -> bool:
    """Whether what a function or method returns is true or false, or a place: it has no slope.

    Example:
        >>> is_step("argmax"), is_step("max")
        (True, False)

    """
    return name.strip("_") in _STEP_METHODS or any(name == each.__name__ for each in _STEP_FUNCTIONS)


def _of_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _OF_SHAPE_METHODS
    if node.target is getattr:
        return node.args[1] in _OF_SHAPE_ATTRIBUTES
    return node.target in _OF_SHAPE_FUNCTIONS


def _is_step(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _STEP_METHODS
    return node.op == "call_function" and node.target in _STEP_FUNCTIONS
