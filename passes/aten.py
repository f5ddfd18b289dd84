"""Operators of an exported graph as the functions of torch that people write."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.dataflow import is_of_shape
from passes.lower_calls import free_name
from passes.source import is_users

_END = 2**62
# Arguments that only the operator has, behind those of the function.
_ARGUMENTS = {"layer_norm": 5, "group_norm": 5}
# How dynamo writes the name of a module.
_REGISTERED = re.compile(r"\.?__dict__\['_modules'\]\['(.+?)'\]")
_FILE = re.compile(r'File "(.+?)", line (\d+)')


class NoFunctionError(Exception):
    """An operator that no function of torch's stands for."""


@dataclass(frozen=True)
class Written:
    """The graph that is being written.

    Args:
        graph: where to.
        model: owner of the modules of the graph.
        known: functions and names of methods that are preferred.
        values: what each node of the exported graph became, by name.

    """

    graph: fx.Graph
    model: nn.Module
    known: Mapping[Any, Any]
    values: dict[str, Any]


def write_call(written: Written, node: fx.Node) -> Any:
    """Write one call of an exported graph, and return its node.

    Raises:
        NoFunctionError: for an operator that is not torch's own.

    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: written.values[each.name])
    result = _written(written, node, args, kwargs)
    if isinstance(result, fx.Node) and "source" not in result.meta:
        result.meta["source"] = _source(node)
    return result


def _written(written: Written, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    graph, target = written.graph, node.target
    if not isinstance(target, torch._ops.OpOverload):
        if getattr(target, "__module__", "") not in ("_operator", "math", "torch"):
            raise NoFunctionError(str(target))
        return graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    space, _, operation = target._schema.name.partition("::")
    if space != "aten":
        raise NoFunctionError(str(target))
    label = _label(node, operation)
    special = _SPECIAL.get(operation)
    if special is not None:
        function, args = special(node, *args, **kwargs)
        return args[0] if function is None else graph.create_node("call_function", function, args, {}, label)
    if operation == "sym_size":
        return graph.create_node("call_method", "size", args, kwargs, label)
    if operation == "dropout":
        name = free_name(written.model, label)
        written.model.add_module(name, nn.Dropout(args[1]))
        return graph.create_node("call_module", name, args[:1], {}, label)
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise NoFunctionError(f"aten::{operation}, which draws random numbers")
    kind, function, args = _function(operation, args, written.known)
    return graph.create_node(kind, function, args, kwargs, label)


def _function(
    operation: str, args: tuple[Any, ...], known: Mapping[Any, Any]
) -> tuple[str, Any, tuple[Any, ...]]:
    """Choose a function of torch's, one of torch.nn.functional, or a method."""
    if operation == "_to_copy":
        return "call_method", "to", args
    own = getattr(torch, operation, None)
    functional = getattr(torch.nn.functional, operation, None)
    method = operation if hasattr(Tensor, operation) else None
    if is_of_shape(operation) and method and own is None:
        return "call_method", method, args
    cut = args[: _ARGUMENTS.get(operation)]
    choices = [
        ("call_function", own, args),
        ("call_function", functional, cut),
        ("call_method", method, args),
    ]
    there = [choice for choice in choices if choice[1] is not None]
    for choice in there:
        if choice[1] in known:
            return choice
    if not there:
        raise NoFunctionError(f"aten::{operation}")
    return there[0]


Special = tuple[Callable[..., Any] | None, tuple[Any, ...]]


def _slice(node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Special:
    begin = None if start == 0 else start
    stop = None if isinstance(end, int) and end >= _END else end
    if begin is None and stop is None and step == 1:
        return None, (x,)
    return operator.getitem, (x, (*_before(node, dim), slice(begin, stop, None if step == 1 else step)))


def _select(node: fx.Node, x: Any, dim: int, index: Any) -> Special:
    return operator.getitem, (x, (*_before(node, dim), index))


def _index(node: fx.Node, x: Any, indices: Any) -> Special:
    return operator.getitem, (x, tuple(slice(None) if each is None else each for each in indices))


def _before(node: fx.Node, dim: int) -> tuple[slice, ...]:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dims: int = source.meta["val"].dim()
    return (slice(None),) * (dim % dims)


_SPECIAL: Mapping[str, Callable[..., Special]] = {"slice": _slice, "select": _select, "index": _index}


def _label(node: fx.Node, operation: str) -> str:
    """Name a node after the module and the operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = _REGISTERED.sub(r".\1", str(stack[-1][0]) if stack else "")
    parts = [part for part in path.split(".") if part]
    if not parts or parts[-1] != operation:
        parts.append(operation)
    return "_".join(parts)


def _source(node: fx.Node) -> str:
    """Return the innermost line of the user's in the stack trace of a node."""
    lines = [
        f"{os.path.basename(file)}:{line}"
        for file, line in _FILE.findall(node.meta.get("stack_trace") or "")
        if is_users(file)
    ]
    return lines[-1] if lines else ""
