"""One loop in a graph: what its steps take from each other, from a sequence and from outside."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from rewriter.engine.loops.repeated import Period, Steps, is_linear, nodes_of, plain


class NoLoopError(Exception):
    """What comes again is no recurrence that can be rolled."""


@dataclass(frozen=True)
class Slices:
    """The part of a sequence that each step takes.

    Args:
        source: the sequence.
        dim: its dimension of time.
        first: the index that the first step takes.
        stride: how far the next one is; 0 as long as one step is known.

    """

    source: fx.Node
    dim: int
    first: int
    stride: int


@dataclass
class Loop:
    """A recurrence.

    Args:
        steps: the graph.
        begin: the place at which the second step begins, whose nodes stand for those of all.
        length: nodes of a step.
        count: steps that are the same, the first, if it is among them, included.
        states: of the second step, the nodes of the new states.
        initial: what the first step takes for the states.
        core: nodes of the second step that make the new states, in order.
        slices: of the sequence; None if the steps take none.
        taken: the nodes of the second step that are its part of the sequence.
        apart: whether each step takes whatever was made for it, in place of parts of one sequence.
        parts: what the steps take then, for each node that is taken, by step.

    """

    steps: Steps
    begin: int
    length: int
    count: int = 0
    states: list[fx.Node] = field(default_factory=list)
    initial: list[fx.Node] = field(default_factory=list)
    core: list[fx.Node] = field(default_factory=list)
    slices: Slices | None = None
    taken: set[fx.Node] = field(default_factory=set)
    apart: bool = False
    parts: dict[fx.Node, dict[int, fx.Node]] = field(default_factory=dict)
    #: The first step that is rolled: 0, or 1 if the first of all is another.
    first: int = 0

    def at(self, node: fx.Node, step: int) -> fx.Node | None:
        """Return what is in the place of a node of the second step in another one; None past the end."""
        place = self.steps.place[node] + (step - 1) * self.length
        return self.steps.nodes[place] if 0 <= place < len(self.steps.nodes) else None

    def offset(self, node: fx.Node) -> int:
        """Return how far a node is from where the second step begins."""
        return self.steps.place[node] - self.begin

    def is_own(self, node: fx.Node) -> bool:
        """Whether a node belongs to the second step."""
        return 0 <= self.offset(node) < self.length

    def is_before(self, node: fx.Node) -> bool:
        """Whether a node belongs to the first step."""
        return -self.length <= self.offset(node) < 0


def loop_at(
    steps: Steps,
    period: Period,
    start: int,
    lowers: Callable[[fx.Node, fx.Node], bool],
    varies: Any,
    *,
    apart: bool,
) -> Loop:
    """Return the recurrence whose second step begins at a place.

    Args:
        steps: the graph.
        period: of its steps.
        start: the place.
        lowers: whether a call, if what it takes varied, would be the atom that another node calls.
        varies: whether a node varies with the inputs.
        apart: whether steps may take whatever was made for each of them.

    Raises:
        NoLoopError: if there is none.

    """
    loop = Loop(steps, start, period.length, apart=apart)
    carried = [
        node
        for node in steps.nodes[start - period.length : start]
        if any(loop.is_own(user) for user in node.users) and varies(node)
    ]
    _collect(loop, carried, varies)
    loop.parts = {node: {1: node} for node in loop.taken}
    if not any(loop.is_before(each) for node in loop.core for each in node.all_input_nodes):
        raise NoLoopError("no state is made of what the step before gives")
    if not loop.taken:
        raise NoLoopError("the steps take no sequence")
    most = period.count - 1
    loop.count = 1 + next((k for k in range(most) if not _is_same(loop, k + 1)), most)
    if not _is_first(loop, lowers):
        loop.first = 1
        loop.initial = [loop.at(each, 0) for each in loop.states]  # type: ignore[misc]  # a place before
        loop.parts = {node: {k: each[k] for k in each if k} for node, each in loop.parts.items()}
    if loop.count - loop.first < 3:
        raise NoLoopError("the steps differ")
    if apart:
        check_apart(loop)
        return loop
    assert loop.slices is not None
    ends = [loop.slices.first + (step - 1) * loop.slices.stride for step in (loop.first, loop.count - 1)]
    if min(ends) < 0 <= max(ends):
        raise NoLoopError("the steps begin at one end of the sequence and go on at the other")
    return loop


def _collect(loop: Loop, carried: list[fx.Node], varies: Any) -> None:
    """Find the states and what makes them."""
    steps = loop.steps
    pending: list[fx.Node] = []

    def add(before: fx.Node) -> None:
        state = loop.at(before, 2)
        if state is None or not loop.is_own(state):
            raise NoLoopError("a state comes from before the loop")
        if state not in loop.states:
            loop.states.append(state)
            pending.append(state)

    core: set[fx.Node] = set()
    of_states = _of_states(loop, carried)
    # A sum over the steps, say, is handed on, too, but nothing else hangs on it.
    through = [node for node in carried if any(_is_linear_of(loop, user) for user in node.users)]
    for node in through or carried:
        add(node)
    while pending:
        node = pending.pop()
        if node in core:
            continue
        if loop.apart and node not in of_states and varies(node):
            core.update(made_apart(loop, node))
            continue
        core.add(node)
        taken = None if loop.apart else _slices_of(node, varies)
        if taken is not None and loop.offset(taken.source) < -loop.length:
            if loop.slices not in (None, taken):
                raise NoLoopError("a step takes several parts of sequences")
            loop.slices = taken
            loop.taken.add(node)
            continue
        for each in node.all_input_nodes:
            if loop.is_own(each):
                pending.append(each)
            elif loop.is_before(each):
                if varies(each):
                    add(each)
            elif varies(each) and loop.apart:
                loop.taken.add(each)
            elif varies(each):
                raise NoLoopError(f"{each} is the same for all steps, and varies")
    if core & loop.taken and loop.apart:
        raise NoLoopError("a step takes what a Linear gives, and something else of it")
    loop.core = sorted(core, key=steps.place.__getitem__)


def _of_states(loop: Loop, carried: list[fx.Node]) -> set[fx.Node]:
    """Return the nodes of the second step that hang on what the step before gives."""
    found = set(carried)
    nodes = loop.steps.nodes[loop.begin : loop.begin + loop.length]
    for node in nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def made_apart(loop: Loop, node: fx.Node) -> list[fx.Node]:
    """Note what a step takes where a node hangs on no state; return the nodes that belong to the loop still.

    A Linear does, which takes the parts of all steps at once, and what takes its result apart.
    """
    path = [node]
    if node in loop.taken:
        return []
    while not is_linear(loop.steps.module(path[-1])):
        operands = path[-1].all_input_nodes
        if path[-1].op == "call_module" or len(operands) != 1 or not loop.is_own(operands[0]):
            loop.taken.add(node)
            return []
        path += operands
    loop.taken.add(path[-1].all_input_nodes[0])
    return path


def check_apart(loop: Loop) -> None:
    """Raise NoLoopError if something that a step takes is made of a state of the loop."""
    own = {
        each
        for node in loop.core
        for step in range(loop.first, loop.count)
        if (each := loop.at(node, step)) is not None
    }
    pending = [each for parts in loop.parts.values() for each in parts.values()]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node in own:
            raise NoLoopError("what a step takes is made of a state")
        pending += [each for each in node.all_input_nodes if each not in seen]
        seen.update(node.all_input_nodes)


def _is_linear_of(loop: Loop, node: fx.Node) -> bool:
    return loop.is_own(node) and is_linear(loop.steps.module(node))


def _slices_of(node: fx.Node, varies: Any) -> Slices | None:
    """Return what a node takes of a sequence; the first index is that of this node."""
    if node.target is not operator.getitem:
        return None
    source, index = node.args
    if not isinstance(source, fx.Node) or not varies(source):
        return None
    if isinstance(index, int):
        return Slices(source, 0, index, 0)
    items = list(index) if isinstance(index, tuple) else []
    places = [(dim, each) for dim, each in enumerate(items) if isinstance(each, int)]
    if len(places) == 1 and items.count(slice(None)) == len(items) - 1:
        ((dim, first),) = places
        return Slices(source, dim, first, 0)
    return None


def _is_same(loop: Loop, step: int) -> bool:
    """Whether a step does what the second one does."""
    for node in loop.core:
        other = loop.at(node, step)
        if other is None or loop.steps.label(other) != loop.steps.label(node):
            return False
        if node in loop.taken and not loop.apart:
            if not _takes(loop, other, step):
                return False
        elif plain(node) != plain(other) or not _inputs_match(loop, node, other, step):
            return False
    return True


def _inputs_match(loop: Loop, node: fx.Node, other: fx.Node, step: int) -> bool:
    mine, theirs = nodes_of(node), nodes_of(other)
    if len(mine) != len(theirs):
        return False
    for a, b in zip(mine, theirs, strict=True):
        if loop.apart and a in loop.taken:
            if loop.parts[a].setdefault(step, b) is not b:
                return False
            continue
        inside = loop.is_own(a) or loop.is_before(a)
        if b is not (loop.at(a, step) if inside else a):
            return False
    return True


def _takes(loop: Loop, other: fx.Node, step: int) -> bool:
    mine, theirs = loop.slices, _slices_of(other, lambda _: True)
    assert mine is not None
    if theirs is None or (theirs.source, theirs.dim) != (mine.source, mine.dim):
        return False
    if step == 2 and mine.stride == 0:
        loop.slices = mine = Slices(mine.source, mine.dim, mine.first, theirs.first - mine.first)
        if mine.stride == 0:
            return False
    return theirs.first == mine.first + (step - 1) * mine.stride


def _is_first(loop: Loop, lowers: Callable[[fx.Node, fx.Node], bool]) -> bool:
    """Whether the first step does the same, but for what it takes as states; note what that is."""
    steps = loop.steps
    initial: dict[fx.Node, fx.Node] = {}
    for node in loop.core:
        other = loop.at(node, 0)
        assert other is not None
        same = steps.label(other) == steps.label(node)
        if node in loop.taken and not loop.apart:
            if not same or not _takes(loop, other, 0):
                return False
            continue
        if not same and not lowers(other, node):
            return False
        if same and plain(node) != plain(other):
            return False
        mine, theirs = nodes_of(node), nodes_of(other)
        if len(mine) != len(theirs):
            return False
        for a, b in zip(mine, theirs, strict=True):
            if loop.apart and a in loop.taken:
                if loop.parts[a].setdefault(0, b) is not b:
                    return False
            elif loop.is_before(a) and loop.at(a, 2) in loop.states:
                if initial.setdefault(a, b) is not b or loop.is_before(b):
                    return False
            elif b is not (loop.at(a, 0) if loop.is_own(a) else a):
                return False
    found = [initial.get(loop.at(each, 0)) for each in loop.states]  # type: ignore[arg-type]
    if any(each is None for each in found):
        return False
    loop.initial = found  # type: ignore[assignment]
    return True


def steps_of(source: Any, dim: int, first: int, stride: int, count: int) -> Tensor:
    """Return the parts of a sequence that steps take, time first.

    Example:
        >>> steps_of(torch.arange(6).view(2, 3), 1, 2, -1, 2)
        tensor([[2, 5],
                [1, 4]])

    """
    if not isinstance(source, Tensor):
        return torch.stack([source[first + k * stride] for k in range(count)])
    size = source.shape[dim]
    begin = first if first >= 0 else size + first
    last = begin + stride * (count - 1)
    # What the model's own code would raise, or read at the other end.
    if min(begin, last) < 0 or max(begin, last) >= size:
        raise IndexError(f"expected {max(begin, last) + 1} steps, got {size}")
    if torch.compiler.is_exporting():
        # A slice of a shorter sequence is shorter; an index that is not there is an error in ONNX, too.
        places = torch.arange(begin, last + (1 if stride > 0 else -1), stride, device=source.device)
        return source.movedim(dim, 0).index_select(0, places)
    if stride > 0:
        return source.movedim(dim, 0)[begin : begin + stride * (count - 1) + 1 : stride]
    low = begin + stride * (count - 1)
    return source.movedim(dim, 0)[low : begin + 1 : -stride].flip(0)


def state_for(state: Tensor, x: Tensor, size: int) -> Tensor:
    """Give every row of a sequence a first state, which may have been one for all.

    Args:
        state: (B, H), or what broadcasts to it.
        x: (T, B, F).
        size: H.

    Example:
        >>> state_for(torch.zeros(1, 2), torch.zeros(5, 3, 4), 2).shape
        torch.Size([3, 2])

    """
    return state.expand(x.shape[1], size) if x.dim() == 3 and state.dim() < 3 else state
