"""The Linears in the steps of a loop: of the sequence, of a state, or of both joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, fx, nn

from passes.graph.dataflow import Dataflow
from passes.operations.catalogue import operation_of
from passes.recurrent.gates import linear_of
from rewriter.engine.loops.loop import Loop, NoLoopError
from rewriter.engine.loops.parts import AsItIs, features_of
from rewriter.engine.loops.repeated import is_linear, rows_of_linear

# Rows of the gates that are made of what steps take, or of a state.
_MOST_ROWS = 8


class Linears:
    """The Linears of a loop, by their nodes in the second step.

    Args:
        loop: the loop; its states are put into an order, that which Linears take first.

    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        #: The states before, in the order of the loop's.
        self.before = [cast("fx.Node", loop.at(each, 0)) for each in loop.states]
        self.input: list[fx.Node] = []
        #: What steps take as it is, with its features, None where they are unknown.
        self.direct: dict[fx.Node, int | None] = {}
        self.hidden: list[fx.Node] = []
        #: Nodes that join what a step takes and a state, by whether the state comes first.
        self.joins: dict[fx.Node, bool] = {}

    @property
    def like(self) -> Tensor:
        """A tensor of the weights' dtype and device."""
        return cast("Tensor", next(self._module((*self.input, *self.hidden)[0]).parameters()))

    def _module(self, node: fx.Node) -> Any:
        return self.loop.steps.module(node)

    def _is_joined(self, node: fx.Node) -> bool:
        return node.all_input_nodes[0] in self.joins

    def order_states(self) -> None:
        """Put the state that the Linears take first.

        Raises:
            NoLoopError: if they take several.

        """
        taken = {
            each
            for node in self.hidden
            for each in (
                node.all_input_nodes[0].all_input_nodes if self._is_joined(node) else node.all_input_nodes
            )
            if each in self.before
        }
        if len(taken) > 1:
            raise NoLoopError("Linears of several states")
        if taken:
            k = self.before.index(taken.pop())
            for each in (self.loop.states, self.loop.initial, self.before):
                each.insert(0, each.pop(k))

    def note_direct(self, flow: Dataflow) -> None:
        """Note what nodes of a step take as it is."""
        for node in self.loop.taken:
            users = [each for each in node.users if each in self.loop.core]
            if any(each not in self.input and each not in self.joins for each in users):
                self.direct[node] = features_of(self.loop.steps, node, flow)

    def join_of(self, node: fx.Node) -> bool | None:
        """Say whether a state comes first in a node that joins one and what a step takes; None for others."""
        operation = operation_of(node.target) if node.op in ("call_function", "call_method") else None
        if operation is None or operation.name != "cat":
            return None
        parts, *dims = node.args
        dim = node.kwargs.get("dim", dims[0] if dims else 0)
        if not isinstance(parts, list | tuple) or len(parts) != 2 or dim not in (1, -1):
            return None
        first, second = parts
        if first in self.before and second in self.loop.taken:
            return True
        return False if first in self.loop.taken and second in self.before else None

    def features(self, size: int) -> int:
        """Return the features of what a step takes, for a size of the state."""
        node = self.input[0]
        whole = int(next(self._module(node).parameters()).shape[1])
        return whole - size if self._is_joined(node) else whole

    def taken_by(self, node: fx.Node) -> fx.Node:
        """Return the part of the sequence that a Linear takes."""
        (operand,) = node.all_input_nodes
        return next(each for each in (operand, *operand.all_input_nodes) if each in self.loop.taken)

    def of_input(self, size: int) -> dict[fx.Node, Any]:
        """Return what makes gates of what a step takes, for a size of the state."""
        return {node: self._part(node, size, of_state=False) for node in self.input}

    def taken_as_it_is(self, size: int) -> Iterator[dict[fx.Node, AsItIs]]:
        """Yield what stands for each part that steps take as it is, for all features that it may have."""
        known = {node: [rows] if rows else [] for node, rows in self.direct.items()}
        unknown = [node for node, rows in self.direct.items() if not rows]
        if len(unknown) > 1:
            raise NoLoopError("the features of several parts are unknown")
        for k in range(1, _MOST_ROWS + 1) if unknown else (1,):
            rows = {
                **{node: each[0] for node, each in known.items() if each},
                **dict.fromkeys(unknown, k * size),
            }
            if all(each % size == 0 for each in rows.values()):
                yield {node: AsItIs(each) for node, each in rows.items()}

    def of_state(self, size: int) -> dict[fx.Node, Any]:
        """Return what makes gates of the state."""
        return {node: self._part(node, size, of_state=True) for node in self.hidden}

    def _part(self, node: fx.Node, size: int, *, of_state: bool) -> Any:
        module = self._module(node)
        if not self._is_joined(node):
            return module
        first = self.joins[node.all_input_nodes[0]] == of_state
        width = size if of_state else module.weight.shape[1] - size
        weight = module.weight[:, :width] if first else module.weight[:, -width:]
        # The memory is that of the whole: what is written to it is seen.
        part = nn.Parameter(weight.detach(), requires_grad=False)
        return linear_of(part, None if of_state else module.bias)

    def sizes(self) -> list[int]:
        """Return the features that a state may have."""
        plain = [node for node in self.hidden if not self._is_joined(node)]
        if plain:
            sizes = [int(next(self._module(plain[0]).parameters()).shape[1])]
        else:
            least = min((rows_of([self._module(node)]) for node in self.input), default=0)
            sizes = [least // k for k in range(1, _MOST_ROWS + 1) if least and least % k == 0]
        widths = [rows_of(map(self._module, each)) for each in (self.input, self.hidden)]
        narrow = [self._module(node).weight.shape[1] for node in self.input if self._is_joined(node)]
        return [
            size
            for size in sizes
            if all(each % size == 0 for each in widths) and all(size < each for each in narrow)
        ]


def find_linears(loop: Loop, flow: Dataflow) -> Linears:
    """Find the Linears of a loop.

    Raises:
        NoLoopError: for those of anything else than the sequence and one of the states.

    """
    found = Linears(loop)
    of_state: set[fx.Node] = set()
    for node in loop.core:
        inputs = node.all_input_nodes
        linear = is_linear(loop.steps.module(node))
        if any(each in of_state or each in found.before for each in inputs):
            of_state.add(node)
            state_first = found.join_of(node)
            if state_first is not None and all(
                type(loop.steps.module(user)) is nn.Linear for user in node.users
            ):
                found.joins[node] = state_first
            elif linear and inputs[0] in found.joins:
                found.input.append(node)
                found.hidden.append(node)
            elif linear and inputs[0] in found.before:
                found.hidden.append(node)
            elif linear:
                raise NoLoopError("a Linear takes something else than a state")
        elif linear and node not in loop.taken and any(flow.varies(each) for each in inputs):
            if not set(inputs) <= loop.taken:
                raise NoLoopError("a Linear takes something else than the sequence")
            found.input.append(node)
    if loop.apart:
        found.note_direct(flow)
    if not (found.input or found.direct) or loop.taken & set(loop.states):
        raise NoLoopError("no Linear takes the sequence")
    if any(each in (*found.input, *found.hidden) for each in loop.states):
        raise NoLoopError("a state is what a Linear gives")
    found.order_states()
    return found


def rows_of(parts: Iterable[Any]) -> int:
    """Return the features that several Linears, and what is taken as it is, give together.

    Example:
        >>> rows_of([nn.Linear(3, 2), nn.Linear(5, 4), AsItIs(3)])
        9

    """
    return sum(each.rows if isinstance(each, AsItIs) else rows_of_linear(each) for each in parts)
