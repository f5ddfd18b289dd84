"""Which calls write into a tensor in place, and what computes the same out of place."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from passes.graph.leaf_functions import augment, overwritten, with_item
from passes.operations.in_place import (
    OPERATORS,
    asks_to_write,
    is_linear_in_place,
    out_of_place,
    without_inplace,
)
from passes.operations.names import in_place_name


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
    return Write(written, target, args, kwargs, is_linear_in_place(node.target))


def _counterpart(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    none: tuple[Any, tuple[Any, ...], dict[str, Any]] = None, (), {}
    if target is augment:
        return OPERATORS[getattr(operator, str(args[0]))], args[1:], kwargs
    name = in_place_name(target)
    if name == "setitem":
        # Of what has names, or is a plain list, the item is not a part of a tensor.
        return none if isinstance(args[1], str) else (with_item, args, kwargs)
    if name in ("copy", "fill"):
        value = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("value"))
        return overwritten, (args[0], value), {}
    if name == "zero":
        return torch.zeros_like, args, {}
    if name is not None:
        plain = out_of_place(target)
        return none if plain is None else (plain, args, kwargs)
    if isinstance(kwargs.get("out"), fx.Node):
        return target, args, kwargs
    if asks_to_write(target, args, kwargs):
        return target, *without_inplace(target, args, kwargs)
    return none
