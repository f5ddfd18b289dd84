"""Steps that a graph writes out one after the other: nodes that come again at equal distances."""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from passes.leaves import Atom
from passes.operations.registered import REGISTERED
from passes.recurrent.gates import SplitGates
from passes.recurrent.layout import CellBegin, CellEnd

#: A loop of fewer steps is left as it is.
LEAST = 4


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a Linear, or one per gate.

    Example:
        >>> is_linear(nn.Linear(1, 1)), is_linear(nn.Tanh()), is_linear(None)
        (True, False, False)

    """
    return type(module) in (nn.Linear, SplitGates)


def rows_of_linear(module: nn.Module | None) -> int:
    """Return the features that a Linear, or several in one module, give together; 0 for what is none.

    Example:
        >>> rows_of_linear(nn.Linear(3, 2)), rows_of_linear(nn.Tanh())
        (2, 0)

    """
    if not is_linear(module):
        return 0
    assert module is not None
    return sum(each.weight.shape[0] for each in module.modules() if isinstance(each, nn.Linear))


@dataclass(frozen=True)
class Period:
    """Where steps may begin, and how far apart.

    Args:
        first: the place of a node of the first step.
        length: nodes of a step.
        count: steps.

    """

    first: int
    length: int
    count: int


class Steps:
    """The nodes of a graph by place, and what is the same in two of them.

    Args:
        model: owns the graph.

    """

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        # What is read once stands in one step only.
        self.nodes = [node for node in model.graph.nodes if node.op != "get_attr"]
        self.place = dict.fromkeys(model.graph.nodes, -1)
        self.place |= {node: k for k, node in enumerate(self.nodes)}

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls."""
        return _called(self.model, node)

    def periods(self) -> Iterator[Period]:
        """Yield runs of calls of one Linear at equal distances, the longest first."""
        calls: dict[str, list[int]] = defaultdict(list)
        for node in self.nodes:
            if is_linear(self.module(node)):
                calls[str(node.target)].append(self.place[node])
        found: set[Period] = set()
        for places in calls.values():
            gaps = [b - a for a, b in itertools.pairwise(places)]
            for gap, times in Counter(gaps).items():
                if times + 1 >= LEAST:
                    begin = next(k for k, each in enumerate(gaps) if each == gap)
                    end = begin
                    while end < len(gaps) and gaps[end] == gap:
                        end += 1
                    if end - begin + 1 >= LEAST:
                        found.add(Period(places[begin], gap, end - begin + 1))
        seen = set()
        for period in sorted(found, key=lambda each: (-each.count, each.first)):
            key = period.length, period.first // period.length
            if key not in seen:
                seen.add(key)
                yield period

    def label(self, node: fx.Node) -> Any:
        """Return the same for two nodes that call the same, whatever they call it with."""
        module = self.module(node)
        if type(module) in REGISTERED:
            # What its class does not show, it may hold.
            return type(module), id(module)
        if isinstance(module, Atom):
            return type(module), repr(module)
        return node.op, node.target


def look_through_cells(model: fx.GraphModule) -> None:
    """Let those that take what torch's cells hand on take it from where it is made; batches are given."""
    for node in model.graph.nodes:
        source = _handed_on(model, node)
        if source is not None:
            node.replace_all_uses_with(source)
    for node in reversed(model.graph.nodes):
        if not node.users and isinstance(_called(model, node), CellBegin | CellEnd | None):
            erase_if_unused(model.graph, node)


def nodes_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among the arguments of a node, each as often as it is one, keywords by name."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, dict(sorted(node.kwargs.items()))), found.append)
    return found


def erase_if_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Take out a node whose value nobody uses."""
    if not node.users and node.op not in ("placeholder", "output"):
        graph.erase_node(node)


def _called(model: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def _handed_on(model: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    module = _called(model, node)
    if isinstance(module, CellEnd) and len(node.args) == 2:
        return _node(node.args[1])
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return None
    whole, item = node.args[0], node.args[1]
    module = _called(model, whole)
    if not isinstance(item, int):
        return None
    if isinstance(module, CellEnd):
        return _node(whole.args[1 + item])
    if isinstance(module, CellBegin) and not whole.kwargs:
        if item == 0:
            return _node(whole.args[0])
        given = whole.args[1]
        if isinstance(given, fx.Node) and isinstance(_called(model, given), CellEnd):
            # The states of a step, as one tuple.
            given = given.args[1:]
        states = given if isinstance(given, tuple | list) else (given,)
        return _node(states[item - 2]) if item >= 2 and len(states) == module.states else None
    return None


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def plain(node: fx.Node) -> Any:
    """Return the arguments of a call with nodes left out: what has to be equal in all steps."""
    return fx.node.map_arg((node.args, node.kwargs), lambda each: None)
