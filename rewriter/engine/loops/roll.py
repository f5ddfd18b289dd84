"""Roll the loops of a graph: a recurrence takes the place of the steps that are written out."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.graph.dataflow import Dataflow
from passes.leaves import Atom
from passes.lowering.calls_in_graphs import LowerCalls
from passes.operations.catalogue import operation_of
from passes.operations.in_place import writes_first
from passes.recurrent.gates import linear_of
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.loops.linears import Linears, find_linears, rows_of
from rewriter.engine.loops.loop import Loop, NoLoopError, Slices, loop_at, state_for, steps_of
from rewriter.engine.loops.parts import AsItIs, SideBySide, in_order
from rewriter.engine.loops.prepared import prepare
from rewriter.engine.loops.repeated import Period, Steps, erase_if_unused, look_through_cells, plain
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.linked_recurrence import JoinedLinears
from rewriter.engine.sweeps.tried_out import NotElementwiseError

# Places at which a step may begin that are tried.
_TRIES = 8


class RolledLoop(nn.Module):
    """The parts of a loop that was rolled.

    Args:
        input: makes gates of what all steps take; of several sequences if steps take several.
        steps: the recurrence.
        size: features of the state.

    """

    def __init__(self, input: nn.Module, steps: Recurrence, size: int) -> None:
        super().__init__()
        self.size = size
        self.input = input
        self.steps = steps
        steps.beside = None if isinstance(input, SideBySide) else "input"


def roll_loops(model: fx.GraphModule) -> int:
    """Roll what can be rolled in a graph that nobody else has; return how many loops that were.

    Example:
        >>> from passes.lowering.calls_in_graphs import LowerCalls
        >>> class Loop(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.x, self.h = nn.Linear(3, 2), nn.Linear(2, 2)
        ...
        ...     def forward(self, x):
        ...         h = x[:, 0, :2]
        ...         for t in range(5):
        ...             h = torch.tanh(self.x(x[:, t]) + self.h(h))
        ...         return h
        >>> model = fx.symbolic_trace(Loop())
        >>> _ = LowerCalls()(model)
        >>> roll_loops(model), [node.name for node in model.graph.nodes if node.op == "call_module"]
        (1, ['loop0_input', 'loop0_steps'])

    """
    done = 0
    prepare(model)
    if not any(Steps(model).periods()):
        return 0
    look_through_cells(model)
    before = _called(model)
    while _roll_one(model, f"loop{done}", apart=False):
        done += 1
    # What was made for the steps is put before the loop, which may be behind what writes to it.
    if not any(_writes(node) for node in model.graph.nodes):
        while _roll_one(model, f"loop{done}", apart=True):
            done += 1
    if done:
        # Whoever goes through all modules has as many to see as are left.
        for name in before - _called(model):
            if isinstance(model.get_submodule(name), Atom):
                model.delete_submodule(name)
        model.graph.lint()
        model.recompile()
    return done


def _writes(node: fx.Node) -> bool:
    called = node.op in ("call_function", "call_method")
    return called and writes_first(node.target, node.args, node.kwargs)


def _called(model: fx.GraphModule) -> set[str]:
    return {str(node.target) for node in model.graph.nodes if node.op == "call_module"}


def _roll_one(model: fx.GraphModule, name: str, *, apart: bool) -> bool:
    steps = Steps(model)
    flow = Dataflow(model.graph)
    for period in steps.periods():
        for start in _starts(steps, period):
            try:
                loop = loop_at(steps, period, start, _lowers(model), flow.varies, apart=apart)
                rolled, taken = _rolled(loop, flow)
                _check_uses(loop)
            except (NoLoopError, NotElementwiseError):
                continue
            _replace(loop, rolled, taken, name)
            if apart:
                in_order(model.graph)
            return True
    return False


def _starts(steps: Steps, period: Period) -> list[int]:
    """Return where the second step may begin: where the least is handed on first."""
    begin = period.first + 1
    crossing = {}
    for start in range(begin, begin + period.length):
        if start < period.length:
            continue
        handed = {
            node
            for node in steps.nodes[start - period.length : start]
            if any(start <= steps.place[user] < start + period.length for user in node.users)
        }
        crossing[start] = len(handed)
    return sorted(crossing, key=lambda start: (crossing[start], start))[:_TRIES]


def _lowers(model: fx.GraphModule) -> Any:
    def lowers(call: fx.Node, node: fx.Node) -> bool:
        """Whether a call would be the atom of a node, if all that it takes varied."""
        if call.op not in ("call_function", "call_method") or node.op != "call_module":
            return False
        atom = model.get_submodule(str(node.target))
        if not isinstance(atom, Atom) or plain(node)[1]:
            return False
        graph = fx.Graph()
        inputs = {each: graph.placeholder(f"x{k}") for k, each in enumerate(call.all_input_nodes)}
        graph.output(graph.node_copy(call, inputs.__getitem__))
        alone = fx.GraphModule(nn.Module(), graph)
        LowerCalls().run(alone)
        made = [each for each in alone.graph.nodes if each.op not in ("placeholder", "output")]
        if len(made) != 1 or made[0].op != "call_module":
            return False
        found = alone.get_submodule(str(made[0].target))
        return (type(found), repr(found)) == (type(atom), repr(atom)) and list(made[0].args) == list(
            inputs.values()
        )

    return lowers


def _rolled(loop: Loop, flow: Dataflow) -> tuple[RolledLoop, list[fx.Node]]:
    """Make the recurrence; return it, and the nodes of the second step that are what its steps take.

    Raises:
        NoLoopError: if a step is anything but Linears of its inputs and a cell.
        NotElementwiseError: if there is no sweep of that cell.

    """
    found = find_linears(loop, flow)
    for size in found.sizes():
        made = [
            each
            for direct in found.taken_as_it_is(size)
            for each in _of_size(loop, found, flow, size, direct)
        ]
        if len(made) == 1:
            return made[0]
        if made:
            raise NoLoopError("the features of what steps take are unknown")
    raise NotElementwiseError("no size of the state fits")


def _of_size(
    loop: Loop, found: Linears, flow: Dataflow, size: int, direct: Mapping[fx.Node, AsItIs]
) -> Iterator[tuple[RolledLoop, list[fx.Node]]]:
    """Yield the recurrence with a state of that size, if it is one, and what its steps take."""
    of_input, of_state = {**found.of_input(size), **direct}, found.of_state(size)
    width = max(rows_of(of_input.values()), rows_of(of_state.values()))
    cell = _cell(loop, found, of_input, of_state, flow)
    cell.__dict__.update(states=len(loop.states), gates="g" * (width // size), size=size)
    try:
        DerivedSweep(cell)
    except NotElementwiseError:
        return
    recurrence = Recurrence(_joined(of_state.values(), width, size, found.like), cell, name="a loop")
    parts: nn.Module
    if direct or (loop.apart and len(loop.taken) > 1):
        parts = SideBySide(
            [
                each if isinstance(each, AsItIs) else _joined([each], rows_of([each]), 0, found.like)
                for each in of_input.values()
            ],
            width,
        )
    else:
        parts = _joined(of_input.values(), width, found.features(size), found.like)
    taken = [node if node in direct else found.taken_by(node) for node in of_input]
    yield RolledLoop(parts, recurrence, size).eval(), taken if isinstance(parts, SideBySide) else taken[:1]


def _joined(linears: Iterable[Any], width: int, features: int, like: Tensor) -> nn.Module:
    """Return one Linear per row of gates that there is, and zeros for the rest."""
    parts: list[Any] = [
        each for linear in linears for each in linear.modules() if isinstance(each, nn.Linear)
    ]
    rest = width - sum(each.weight.shape[0] for each in parts)
    if len(parts) == 1 and not rest:
        # Of its own: the first step may call the other one by itself.
        return linear_of(parts[0].weight, parts[0].bias)
    if rest:
        parts.append(linear_of(_zeros(like, rest, features), None))
    if any(each.bias is not None for each in parts):
        parts = [
            each if each.bias is not None else linear_of(each.weight, _zeros(like, each.weight.shape[0]))
            for each in parts
        ]
    return JoinedLinears(parts)


def _zeros(like: Tensor, *shape: int) -> nn.Parameter:
    return nn.Parameter(like.detach().new_zeros(shape), requires_grad=False)


def _cell(
    loop: Loop,
    found: Linears,
    of_input: Mapping[fx.Node, Any],
    of_state: Mapping[fx.Node, Any],
    flow: Dataflow,
) -> fx.GraphModule:
    """Make the cell: takes both parts of the gates and the states, returns the new states."""
    graph = fx.Graph()
    x, h = graph.placeholder("x"), graph.placeholder("h_gates")
    values: dict[fx.Node, fx.Node] = {
        each: graph.placeholder(f"state{k}") for k, each in enumerate(found.before)
    }
    same = rows_of(of_input.values()) == rows_of(of_state.values())
    for part, linears in ((x, of_input), (h, of_state)):
        begin = 0
        for node, linear in linears.items():
            end = begin + rows_of([linear])
            piece: Any = (part, (..., slice(begin, end)))
            whole = same and len(linears) == 1
            made = part if whole else graph.call_function(operator.getitem, piece)
            # A Linear of both gives the sum of what it makes of each.
            values[node] = graph.call_function(operator.add, (values[node], made)) if node in values else made
            begin = end

    def value(node: fx.Node) -> fx.Node:
        if node not in values:
            if flow.varies(node):
                raise NoLoopError("a varying value from outside")
            values[node] = graph.node_copy(node, value)
        return values[node]

    for node in loop.core:
        if node not in loop.taken and node not in values and node not in found.joins:
            values[node] = graph.node_copy(node, value)
    graph.output(tuple(values[each] for each in loop.states))
    return fx.GraphModule(loop.steps.model, graph)


def _check_uses(loop: Loop) -> None:
    """Raise NoLoopError if anything of the steps is used elsewhere but the first state, and the last ones."""
    inside: set[fx.Node] = set()
    given: set[fx.Node] = set()
    for step in range(loop.first, loop.count):
        inside |= {
            each for node in loop.core if (each := loop.at(node, step)) is not None and node not in loop.taken
        }
        last = step == loop.count - 1
        given |= {loop.at(each, step) for each in (loop.states if last else loop.states[:1])}  # type: ignore[misc]
    alive = [node for node in loop.steps.nodes if node.op == "output"]
    seen = set(alive)
    while alive:
        for each in alive.pop().all_input_nodes:
            if each in given or each in seen:
                continue
            if each in inside:
                raise NoLoopError(f"{each} is used outside of the loop")
            seen.add(each)
            alive.append(each)


def _sequences(loop: Loop, taken: Collection[fx.Node]) -> list[fx.Node]:
    """Write down what all steps take, time first, behind all that the first one takes."""
    steps, graph, slices = loop.steps, loop.steps.model.graph, loop.slices
    if slices is not None:
        first = slices.first + (loop.first - 1) * slices.stride
        source, dim = _whole(slices)
        with graph.inserting_after(max((slices.source, *loop.initial), key=steps.place.__getitem__)):
            x = (source, dim, first, slices.stride, loop.count - loop.first)
            return [graph.call_function(steps_of, x)]
    each_step = {each: [loop.parts[each][k] for k in range(loop.first, loop.count)] for each in taken}
    at = max((*loop.initial, *(x for each in each_step.values() for x in each)), key=steps.place.__getitem__)
    made: dict[fx.Node, fx.Node] = {}
    for each, parts in each_step.items():
        with graph.inserting_after(at):
            at = made[each] = graph.call_function(torch.stack, (parts,))
    return [made[each] for each in taken]


def _replace(loop: Loop, rolled: RolledLoop, taken: Collection[fx.Node], name: str) -> None:
    steps, graph = loop.steps, loop.steps.model.graph
    steps.model.add_module(name, rolled)
    sequences = _sequences(loop, taken)
    with graph.inserting_after(sequences[-1] if len(sequences) < 2 else max(sequences)):
        gates = graph.call_module(f"{name}.input", tuple(sequences))
    at, states = gates, []
    for initial in loop.initial:
        with graph.inserting_after(at):
            at = graph.call_function(state_for, (initial, sequences[0], rolled.size))
        states.append(at)
    with graph.inserting_after(at):
        result = graph.call_module(f"{name}.steps", (gates, None, *states))
    at = result
    for k, state in enumerate(loop.states):
        with graph.inserting_after(at):
            at = graph.call_function(operator.getitem, (result, 1 + k))
        loop.at(state, loop.count - 1).replace_all_uses_with(at)  # type: ignore[union-attr]
    written = {
        each: None for node in loop.core for k in range(loop.first, loop.count) if (each := loop.at(node, k))
    }
    _replace_each(loop, result, at, written)
    for node in sorted(written, key=steps.place.__getitem__, reverse=True):
        erase_if_unused(graph, node)
    if loop.slices is not None:
        erase_if_unused(graph, loop.slices.source)


def _whole(slices: Slices) -> tuple[fx.Node, int]:
    """Return the sequence and its dimension of time, also of one that was taken apart before."""
    source = slices.source
    operation = operation_of(source.target) if source.op in ("call_function", "call_method") else None
    if operation is None or operation.name != "unbind":
        return source, slices.dim
    tensor, *dims = source.args
    dim = source.kwargs.get("dim", dims[0] if dims else 0)
    return (tensor, dim) if isinstance(tensor, fx.Node) and isinstance(dim, int) else (source, slices.dim)


def _replace_each(loop: Loop, result: fx.Node, at: fx.Node, written: Collection[fx.Node]) -> None:
    """Let those that take the first state of some step take it from the recurrence."""
    graph = loop.steps.model.graph
    used: dict[int, fx.Node] = {}
    for k in range(loop.first, loop.count - 1):
        node = loop.at(loop.states[0], k)
        if node is not None and any(user not in written for user in node.users):
            used[k - loop.first] = node
    if not used:
        return
    with graph.inserting_after(at):
        outputs = graph.call_function(operator.getitem, (result, 0))
    with graph.inserting_after(outputs):
        each = graph.call_function(torch.unbind, (outputs, 0))
    at = each
    for k, node in used.items():
        with graph.inserting_after(at):
            at = graph.call_function(operator.getitem, (each, k))
        node.replace_all_uses_with(at)
