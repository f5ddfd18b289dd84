"""Gates side by side: what is done alike to neighbouring parts of a value is done once to both.

A runtime takes about as long to begin an operation as to do it on a small value. So the sigmoids of an LSTM's
input and forget gates, which lie beside each other, become one, and a GRU's sums and sigmoids of both gates,
too. Each number is computed as before.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from passes.leaves import ReLUAtom, SigmoidAtom, TanhAtom

_UNARY = (SigmoidAtom, TanhAtom, ReLUAtom)
Widths = Mapping[fx.Node, Sequence[int]]


def packed(graph: fx.Graph, body: nn.Module, widths: Widths) -> fx.Graph:
    """Return a graph that computes the same in fewer operations.

    Args:
        graph: of a step, with ``chunk`` along the last axis; it stays as it is.
        body: whose modules it calls.
        widths: the number of features of each value; of a chunk, of each of its parts.

    """
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    made.output(made.graph_copy(graph, copies))
    for node, copy in copies.items():
        if copy.target == "chunk":
            with made.inserting_before(copy):
                split = made.call_function(torch.split, (copy.args[0], list(widths[node]), -1))
            copy.replace_all_uses_with(split)
            made.erase_node(copy)
    while any(_join(made, body, node) for node in made.nodes if node.target is torch.split):
        pass
    return made


def _join(graph: fx.Graph, body: nn.Module, split: fx.Node) -> bool:
    """Join two neighbours of a split and what is done to them; whether there were such."""
    sizes, parts = _sizes(split), _parts(split)
    for k in range(len(sizes) - 1):
        users = [_only_user(parts.get(each)) for each in (k, k + 1)]
        if None in users or users[0] is users[1]:
            continue
        kinds = [_kind(body, each) for each in users]
        if kinds[0] is None or kinds[0] != kinds[1]:
            continue
        splits = [(split, k)]
        operands = [parts[k]]
        if kinds[0] is operator.add:
            others = [next((x for x in each.args if x not in parts.values()), None) for each in users]
            found = _neighbours(others)
            if found is None:
                continue
            splits.append(found)
            operands.append(others[0])
        order = {node: place for place, node in enumerate(graph.nodes)}
        if max(map(order.__getitem__, operands)) > min(map(order.__getitem__, users)):
            continue
        _apply(graph, users, splits)
        return True
    return False


def _sizes(split: fx.Node) -> list[int]:
    return list(cast("list[int]", split.args[1]))


def _parts(split: fx.Node) -> dict[int, Any]:
    """Return the parts that are used, by place; none of them if one is taken twice."""
    found: dict[int, Any] = {cast("int", user.args[1]): user for user in split.users}
    return found if len(found) == len(split.users) else {}


def _only_user(node: fx.Node | None) -> Any:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _kind(body: nn.Module, node: fx.Node) -> Any:
    if node.op == "call_module":
        kind = type(body.get_submodule(str(node.target)))
        return kind if kind in _UNARY else None
    return operator.add if node.target is operator.add else None


def _neighbours(nodes: Sequence[Any]) -> tuple[fx.Node, int] | None:
    """Return the split of which two nodes are neighbours with no other user, and the place of the first."""
    if not all(isinstance(each, fx.Node) and each.target is operator.getitem for each in nodes):
        return None
    (split, place), (other, following) = (each.args for each in nodes)
    if split is not other or split.target is not torch.split or following != place + 1:
        return None
    parts = _parts(split)
    alone = parts and all(map(_only_user, nodes))
    return (split, place) if alone else None


def _apply(graph: fx.Graph, users: Sequence[fx.Node], splits: Sequence[tuple[fx.Node, int]]) -> None:
    split, k = splits[0]
    widths = _sizes(split)[k : k + 2]
    order = {node: place for place, node in enumerate(graph.nodes)}
    first = min(users, key=order.__getitem__)
    operands = [_widened(graph, *each) for each in splits]
    with graph.inserting_before(first):
        whole = graph.create_node(first.op, first.target, tuple(operands))
        halves = graph.call_function(torch.split, (whole, widths, -1))
        parts = [graph.call_function(operator.getitem, (halves, each)) for each in range(2)]
    for user, part in zip(users, parts, strict=True):
        taken = [each for each in user.all_input_nodes if each not in operands]
        user.replace_all_uses_with(part)
        graph.erase_node(user)
        for each in taken:
            graph.erase_node(each)
    for each, _ in splits:
        if len(_sizes(each)) == 1:
            (part,) = each.users
            part.replace_all_uses_with(each.all_input_nodes[0])
            graph.erase_node(part)
            graph.erase_node(each)


def _widened(graph: fx.Graph, split: fx.Node, k: int) -> fx.Node:
    """Let the part at place ``k`` hold the following one, too; the node of that is erased with its user."""
    parts, sizes = _parts(split), _sizes(split)
    sizes[k : k + 2] = [sizes[k] + sizes[k + 1]]
    split.args = (split.args[0], sizes, -1)
    for place, part in parts.items():
        if place > k:
            part.args = (split, place - 1)
    return cast("fx.Node", parts[k])
