"""Which calls write into a tensor in place, and what computes the same out of place."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from passes.graph.leaf_functions import augment, overwritten, set_item, with_item

# Out of place, these return a view, or another tensor object: there is no value that they write.
_NO_VALUE = {
    "apply", "as_strided", "detach", "index_put", "map", "map2", "put", "rename", "requires_grad", "resize",
    "resize_as", "set", "share_memory", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze",
}  # fmt: skip
_RANDOM = {
    "alpha_dropout", "bernoulli", "cauchy", "dropout", "exponential", "feature_alpha_dropout",
    "feature_dropout", "geometric", "log_normal", "normal", "random", "rrelu", "uniform",
}  # fmt: skip
#: ``a += b`` and its kind, by what computes the same out of place.
OPERATORS: Mapping[Any, Any] = {
    operator.iadd: operator.add,
    operator.iand: operator.and_,
    operator.ifloordiv: operator.floordiv,
    operator.imatmul: operator.matmul,
    operator.imod: operator.mod,
    operator.imul: operator.mul,
    operator.ior: operator.or_,
    operator.ipow: operator.pow,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    operator.ixor: operator.xor,
}
_FUNCTIONS: Mapping[Any, Any] = {
    function: getattr(space, name[:-1])
    for space in (torch, F)
    for name, function in vars(space).items()
    if name.endswith("_") and not name.startswith("_") and hasattr(space, name[:-1])
    if name[:-1] not in _NO_VALUE | _RANDOM and callable(function)
}
# Linear, so that they need no rule where they have to write in place.
_LINEAR = {
    operator.iadd, operator.isub, operator.setitem, "__setitem__", "add_", "sub_", "subtract_", "copy_",
    "fill_", "zero_", "neg_", "negative_",
}  # fmt: skip


@dataclass(frozen=True)
class Write:
    """A call that writes in place.

    Args:
        written: the tensor that it changes.
        target: what computes the new value out of place.
        args: its arguments.
        kwargs: likewise.
        linear: whether it needs no rule.

    """

    written: fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    linear: bool = False

    def value(self, graph: fx.Graph, tensor: fx.Node, name: str) -> list[fx.Node]:
        """Add nodes, of which the last is the new value; ``tensor`` is what the written one was."""
        args, kwargs = fx.node.map_arg(
            (self.args, self.kwargs), lambda each: tensor if each is self.written else each
        )
        kind = "call_method" if isinstance(self.target, str) else "call_function"
        new = graph.create_node(kind, self.target, args, kwargs, name)
        if new.all_input_nodes == [tensor] or self.target in (with_item, overwritten):
            return [new]
        # In place, the tensor keeps its dtype whatever the others are.
        return [new, graph.call_method("type_as", (new, tensor))]


def write_of(node: fx.Node) -> Write | None:
    """Return what a node writes in place, or None if it writes nothing, or what is not known here.

    Example:
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> write_of(graph.call_method("mul_", (x, 2))).target, write_of(graph.call_method("mul", (x, 2)))
        ('mul', None)

    """
    if node.op not in ("call_function", "call_method"):
        return None
    target, args, kwargs = _counterpart(node)
    written = kwargs.pop("out", None) or (args[0] if args else kwargs.get("input"))
    if target is None or not isinstance(written, fx.Node):
        return None
    return Write(written, target, args, kwargs, node.target in _LINEAR)


def _counterpart(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    none: tuple[Any, tuple[Any, ...], dict[str, Any]] = None, (), {}
    if target is augment:
        return OPERATORS[getattr(operator, str(args[0]))], args[1:], kwargs
    if target in (operator.setitem, "__setitem__", set_item):
        # Of what has names, or is a plain list, the item is not a part of a tensor.
        return none if isinstance(args[1], str) else (with_item, args, kwargs)
    if target in ("copy_", "fill_"):
        value = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("value"))
        return overwritten, (args[0], value), {}
    if target == "zero_":
        return torch.zeros_like, args, {}
    if isinstance(target, str):
        base = target[:-1]
        known = target.endswith("_") and not target.endswith("__") and hasattr(Tensor, base)
        return (base, args, kwargs) if known and base not in _NO_VALUE | _RANDOM else none
    if target in OPERATORS:
        return OPERATORS[target], args, kwargs
    if target in _FUNCTIONS:
        return _FUNCTIONS[target], args, kwargs
    if isinstance(kwargs.get("out"), fx.Node):
        return target, args, kwargs
    place = _place_of_inplace(target)
    if place is not None:
        if kwargs.get("inplace") is True:
            return target, args, kwargs | {"inplace": False}
        if len(args) > place and args[place] is True:
            return target, (*args[:place], False, *args[place + 1 :]), kwargs
    return none


def _place_of_inplace(target: Any) -> int | None:
    if getattr(F, getattr(target, "__name__", ""), None) is not target and target is not F.threshold:
        return None
    try:
        names = list(inspect.signature(cast("Callable[..., Any]", target)).parameters)
    except ValueError:
        return None
    return names.index("inplace") if "inplace" in names else None
