"""Let what a layer takes, or gives, go through a function, where a graph has the layer written out."""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager

from torch import fx

from passes.errors import RewriteError
from passes.graph.layers import Call, LayerBoundary
from passes.graph.leaf_functions import with_item, write_back, write_through
from passes.graph.writes import write_of


def insert_boundary(graph: fx.Graph, call: Call, side: str, target: str, boundary: LayerBoundary) -> None:
    """Let what a layer takes, or gives, go through a boundary.

    Args:
        graph: changed.
        call: the call of the layer.
        side: ``"input"`` or ``"output"``.
        target: the name that the boundary has in the owner of the graph.
        boundary: told which items are used.

    Raises:
        RewriteError: if the layer hands on what it takes, so that nothing tells the two apart, or if
            nothing uses what it gives.

    """
    nodes = {node.name: node for node in graph.nodes}
    order = {node: k for k, node in enumerate(graph.nodes)}
    first, last, inputs, outputs = call
    begin, end = (nodes[name] if name else None for name in (first, last))
    after, until = (-1 if node is None else order[node] for node in (begin, end))
    inside = [node for node in graph.nodes if after < order[node] <= until]
    values = [nodes[name] for name in (inputs if side == "input" else outputs) if name]
    written = _written(inside)
    if any(name and order[nodes[name]] <= after and nodes[name] not in written for name in outputs):
        raise RewriteError("hands on what it takes; explain the layer before or behind it")
    if side == "input":
        uses = [[user for user in value.users if user in inside] for value in values]
        place = begin
    else:
        parts = [
            user for value in values for user in value.users if user in inside and _takes_part(user, value)
        ]
        place = end if not parts else max(values, key=order.__getitem__)
        last_one = order[place] if place else -1
        uses = [
            [
                each
                for each in value.users
                if order[each] > until or (each in parts and order[each] > last_one)
            ]
            for value in values
        ]
    shared = [side == "output" and value in written for value in values]
    boundary.used = [
        _paths(users) if side == "output" and not alias else [()]
        for users, alias in zip(uses, shared, strict=True)
    ]
    if side == "output" and not any(boundary.used):
        raise RewriteError("gives nothing that the model uses; explain another layer")
    with _behind(graph, place):
        given = graph.call_module(target, tuple(values))
        items = [graph.call_function(operator.getitem, (given, k)) for k in range(len(values))]
        for value, item, alias in zip(values, items, shared, strict=True):
            if alias:
                graph.call_function(write_through, (value, item))
    for value, item, users, alias in zip(values, items, uses, shared, strict=True):
        for user in () if alias else users:
            user.replace_input_with(value, item)
    if side == "input" and written:
        # The layer has copies to write to.
        with _behind(graph, items[-1] if place is end else end):
            for value, item in zip(values, items, strict=True):
                graph.call_function(write_back, (value, item))


def _written(nodes: list[fx.Node]) -> set[fx.Node]:
    """Return what nodes write to in place, by each name for it."""
    writes = [(node, write_of(node)) for node in nodes]
    return {each for node, write in writes if write is not None for each in (node, write.written)}


def _takes_part(user: fx.Node, value: fx.Node) -> bool:
    """Whether a value is written into another that it is a part of."""
    return user.target is with_item and user.args[2] is value


def _paths(users: list[fx.Node]) -> list[tuple[int, ...]]:
    """Return the items that are used of a value, all of it as ``()``."""
    found: dict[tuple[int, ...], None] = {}
    for user in users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            return [()]
        found |= {(user.args[1], *path): None for path in _paths(list(user.users))}
    return list(found)


def _behind(graph: fx.Graph, node: fx.Node | None) -> AbstractContextManager[None]:
    return graph.inserting_before(next(iter(graph.nodes)) if node is None else node.next)
