"""What steps call in the form in which loops are looked for: Linears for products with parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from passes.operations.catalogue import operation_of
from passes.recurrent.gates import linear_of
from rewriter.engine.loops.repeated import LEAST

# Operations that take a parameter times something, and those that turn a matrix round.
_LINEAR, _PRODUCTS = "linear", ("matmul", "mm")
_Key = tuple[str, str, bool]


def prepare(model: fx.GraphModule) -> None:
    """Rewrite a graph that nobody else has, in evaluation mode.

    Example:
        >>> class Step(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.ones(2, 2))
        ...
        ...     def forward(self, h):
        ...         for _ in range(4):
        ...             h = torch.tanh(h @ self.w.T)
        ...         return h
        >>> import torch
        >>> model = fx.symbolic_trace(Step())
        >>> prepare(model)
        >>> [str(node.target) for node in model.graph.nodes if node.op == "call_module"][:2]
        ['linear0', 'linear0']

    """
    found = {node: key for node in model.graph.nodes if (key := _linear_of(model, node)) is not None}
    often = Counter(found.values())
    made: dict[_Key, str] = {}
    for node in list(model.graph.nodes):
        if node in found and often[found[node]] >= LEAST:
            key = found[node]
            made[key] = made.get(key) or _module_for(model, key, len(made))
            with model.graph.inserting_before(node):
                called = model.graph.call_module(made[key], (node.args[0],))
            called.meta.update(node.meta)
            node.replace_all_uses_with(called)
            model.graph.erase_node(node)
        elif node.op == "call_module" and _does_nothing(model.get_submodule(str(node.target))):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)


def _linear_of(model: fx.GraphModule, node: fx.Node) -> _Key | None:
    """Return which weight, which bias (``""`` for none) and which way round a node multiplies with."""
    operation = operation_of(node.target) if node.op in ("call_function", "call_method") else None
    if operation is None or operation.name not in (_LINEAR, *_PRODUCTS) or len(node.args) < 2:
        return None
    if operation.name == _LINEAR:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        weight, turned = _parameter(model, node.args[1], 2)
        bias_name, _ = _parameter(model, bias, 1) if bias is not None else ("", False)
        if weight is None or turned or bias_name is None or set(node.kwargs) - {"bias"}:
            return None
        return weight, bias_name, False
    weight, turned = _parameter(model, node.args[1], 2)
    if weight is None or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    return weight, "", not turned


def _parameter(model: fx.GraphModule, value: Any, dim: int) -> tuple[str | None, bool]:
    """Return the name of a parameter with so many dimensions, and whether it is turned round, else None."""
    turned = False
    while isinstance(value, fx.Node) and value.op != "get_attr":
        if not _turns(value):
            return None, False
        value, turned = value.args[0], not turned
    if not isinstance(value, fx.Node):
        return None, False
    tensor = _tensor(model, str(value.target))
    is_one = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() == dim
    return (str(value.target), turned) if is_one else (None, False)


def _turns(node: fx.Node) -> bool:
    if node.target is getattr and node.args[1] in ("T", "mT"):
        return True
    operation = operation_of(node.target) if node.op in ("call_function", "call_method") else None
    return operation is not None and operation.name == "t" and len(node.args) == 1


def _tensor(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and not module.training


def _module_for(model: fx.GraphModule, key: _Key, number: int) -> str:
    weight, bias, turned = key
    name = f"linear{number}"
    while hasattr(model, name):
        name += "_"
    # The memory is that of the parameter: what is written to it is seen.
    matrix = _tensor(model, weight).detach()
    parts = [matrix.T if turned else matrix, _tensor(model, bias).detach() if bias else None]
    of_weight, of_bias = (None if each is None else nn.Parameter(each, requires_grad=False) for each in parts)
    assert of_weight is not None
    model.add_module(name, linear_of(of_weight, of_bias))
    return name
