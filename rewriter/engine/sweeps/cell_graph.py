"""The graph of a cell's step, read backwards: how multipliers of the new state reach what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from passes.graph.dataflow import Dataflow
from passes.graph.tracer import AtomTracer
from passes.leaves import Atom
from passes.lowering.calls_in_graphs import LowerCalls
from passes.lowering.coverage import why_no_rule_for_call
from passes.operations.catalogue import operation_of
from passes.operations.in_place import writes_first
from passes.operations.names import is_pointwise
from passes.operations.operation import Kind
from passes.operations.table import rule_of
from passes.user_code.clone import clone_structure
from rewriter.engine.rules import multipliers_of
from rewriter.engine.sweeps.tried_out import NotElementwiseError as NotElementwiseError
from rewriter.engine.sweeps.tried_out import constant, scaled_by, slots_at, taken_times

# Features of the state for which the graph is tried out: a piece that has a size of its own fits one at most.
_WIDTHS = 3, 5


@dataclass(frozen=True)
class Product:
    """A product that is made where it is wanted."""

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> torch.Size:
        """The shape that both broadcast to."""
        return torch.broadcast_shapes(self.a.shape, self.b.shape)  # type: ignore[no-any-return, no-untyped-call]


Multiplier = Tensor | Product
# A number takes the type of the tensor that it multiplies.
_ONE = torch.ones((), dtype=torch.float64)


def whole(multiplier: Multiplier) -> Tensor:
    """Return a product that is made now, and a tensor as it is."""
    return multiplier.a * multiplier.b if isinstance(multiplier, Product) else multiplier


@dataclass
class Reached:
    """What a one reaches from a new state.

    Args:
        new: other new states that it is made of, by their number.
        gates: the gates' slots; those of the hidden state's part first, if both parts are taken apart.
        old: the old states.

    """

    new: dict[int, Multiplier]
    gates: dict[int, Multiplier]
    old: dict[int, Multiplier]


class CellGraph:
    """The graph of one step of a cell: elementwise atoms, what is linear in them, and pieces of the gates.

    Args:
        cell: takes both parts of the gates and the old state, returns the new state; its calls are lowered.

    Raises:
        NotElementwiseError: for a cell of which it is not certain that it is made of nothing else.

    """

    def __init__(self, cell: nn.Module) -> None:
        # Of its own: the atoms of the caller's may be given other forwards.
        self.cell = clone_structure(cell)
        self.model = _lowered(self.cell)
        self.graph = self.model.graph
        self.flow = Dataflow(self.graph)
        #: Features of the state of a cell that is for one size; None for any.
        self.width: int | None = getattr(cell, "size", None)
        self.gates = len(cell.gates)  # type: ignore[arg-type]  # every cell has this class attribute
        x, h, *self.old = (node for node in self.graph.nodes if node.op == "placeholder")
        (output,) = next(node for node in self.graph.nodes if node.op == "output").args
        self.new = list(cast("Sequence[fx.Node]", output))
        self.inputs = x, h
        self.atoms = [node for node in self.graph.nodes if node.op == "call_module"]
        if not self.atoms:
            raise NotElementwiseError("the cell has no atoms")
        if not all(map(self.flow.varies, self.new)):
            raise NotElementwiseError("a new state is the same whatever the old one is")
        #: Number by which a linear node takes each of its operands.
        self.linear: dict[fx.Node, dict[fx.Node, float]] = {}
        #: The same, by numbers of each feature, of those that take parameters, too.
        self.scaled: dict[fx.Node, dict[fx.Node, Tensor]] = {}
        for node in self.graph.nodes:
            self._check(node)
        self.kept = list(dict.fromkeys(each for node in self.atoms for each in (*node.all_input_nodes, node)))
        joined = self._sum_of_inputs()
        #: Where both parts of the gates enter: their sum, or the hidden state's part and the input's.
        self.entrances = [joined] if joined else [h, x]
        #: The slot of the gates that a node is.
        self.slots = self._slots()

    def _check(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "output", "get_attr"):
            return
        if node.op == "call_module":
            atom = self.model.get_submodule(str(node.target))
            rule = rule_of(atom) if isinstance(atom, Atom) else None
            if rule is None or not rule.elementwise:
                raise NotElementwiseError(f"{node.target} has no elementwise rule")
            if node.kwargs or not all(
                isinstance(each, fx.Node) and self.flow.varies(each) for each in node.args
            ):
                # What is kept of each step, for the rule, has the batch's rows.
                raise NotElementwiseError(f"{node.target} takes what does not vary")
            return
        operation = operation_of(node.target)
        if operation is None or operation.kind not in (Kind.LINEAR, Kind.PRODUCT):
            raise NotElementwiseError(f"{node.target} has no rule")
        if writes_first(node.target, node.args, node.kwargs) or "out" in node.kwargs:
            raise NotElementwiseError(f"{node.target} writes to what may be kept")
        flow = self.flow
        reason = why_no_rule_for_call(node.target, node.args, node.kwargs, flow.varies, flow.is_discrete)
        if reason is not None:
            raise NotElementwiseError(f"{node.target}: {reason}")
        # An operator is known to torch by the name of its function.
        pointwise = is_pointwise(node.target) or is_pointwise(operation.name)
        if pointwise and flow.varies(node):
            if self.width is not None and not all(map(flow.varies, node.all_input_nodes)):
                self.scaled[node] = self.factors(node)
            else:
                self.linear[node] = taken_times(node, flow.varies)

    def _sum_of_inputs(self) -> fx.Node | None:
        """Return the node that adds both parts of the gates, if nothing else takes either."""
        users = {user for each in self.inputs for user in each.users}
        only = users.pop() if len(users) == 1 else None
        ones = dict.fromkeys(self.inputs, 1.0)
        return only if only is not None and self.linear.get(only) == ones else None

    def _slots(self) -> dict[fx.Node, int]:
        """Find the slots of the gates that nodes are."""
        pieces = [
            node
            for node in self.graph.nodes
            if node.op in ("call_function", "call_method")
            and node not in self.linear
            and node not in self.scaled
            and self.flow.varies(node)
        ]
        # A cell of a loop of the user's own is for one size.
        widths = _WIDTHS if self.width is None else (self.width,)
        found = [slots_at(width, self.gates, self.entrances, pieces) for width in widths]
        if any(each != found[0] for each in found):
            raise NotElementwiseError("the pieces of the gates have sizes of their own")
        own = {node: k for k, node in enumerate(self.entrances)} if self.gates == 1 else {}
        return own | found[0]

    def factors(self, node: fx.Node) -> dict[fx.Node, Tensor]:
        """Return the numbers, one per feature, by which a call takes what varies, its parameters as they are.

        Raises:
            NotElementwiseError: if there are none, the same wherever the call is tried out.

        """
        assert self.width is not None
        return scaled_by(node, self.flow.varies, lambda each: constant(self.model, each), self.width)

    def forward(self) -> Callable[..., tuple[Tensor, ...]]:
        """Compile a step: of the gates and the old state, to the new state and what is kept."""
        graph = fx.Graph()
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if len(self.entrances) == 1 and node is self.entrances[0]:
                values[node] = values[self.inputs[0]]
            elif node.op == "output":
                graph.output(tuple(values[each] for each in (*self.new, *self.kept)))
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
        return fx.GraphModule(self.model, graph)

    def backward(
        self, pairs: Mapping[fx.Node, tuple[Tensor, Tensor]], *, anew: bool = True
    ) -> list[tuple[int, Reached]]:
        """Take a one from each new state back to the next ones, the gates and the old states.

        Args:
            pairs: what is kept, of samples and references, in shapes that broadcast.
            anew: read the cell's parameters as they are now; else as they were when they were read last.

        Returns:
            The number of each new state with what it reaches; none before one that it is made of.

        """
        multipliers = {node: self._multipliers(node, pairs) for node in self.atoms}
        # The parameters may have been written to.
        if anew:
            self.scaled = {node: self.factors(node) for node in self.scaled}
        place = {node: k for k, node in enumerate(self.graph.nodes)}
        ordered = sorted(range(len(self.new)), key=lambda k: place[self.new[k]], reverse=True)
        return [(k, self._reached(self.new[k], multipliers)) for k in ordered]

    def _multipliers(
        self, node: fx.Node, pairs: Mapping[fx.Node, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        rule = rule_of(self.model.get_submodule(str(node.target)))
        assert rule is not None
        return multipliers_of(rule, [pairs[cast("fx.Node", each)] for each in node.args], pairs[node])

    def _reached(self, start: fx.Node, multipliers: Mapping[fx.Node, tuple[Tensor, ...]]) -> Reached:
        pending: dict[fx.Node, Multiplier] = {start: _ONE}
        found = Reached({}, {}, {})
        for node in reversed(self.graph.nodes):
            d = pending.pop(node, None)
            if d is None or not self.flow.varies(node):
                continue
            if node in self.slots:
                slot = self.slots[node]
                found.gates[slot] = whole(found.gates[slot]) + whole(d) if slot in found.gates else d
            elif node in self.old:
                found.old[self.old.index(node)] = d
            elif node in self.new and node is not start:
                found.new[self.new.index(node)] = d
            elif node.op == "placeholder":
                raise NotElementwiseError(f"{node.name} is taken whole")
            else:
                for source, part in self._passed(node, d, multipliers):
                    pending[source] = whole(pending[source]) + whole(part) if source in pending else part
        return found

    def _passed(
        self, node: fx.Node, d: Multiplier, multipliers: Mapping[fx.Node, tuple[Tensor, ...]]
    ) -> Iterator[tuple[fx.Node, Multiplier]]:
        if node in self.scaled:
            for source, numbers in self.scaled[node].items():
                yield source, whole(d) * numbers
        elif node in self.linear:
            for source, factor in self.linear[node].items():
                yield source, d if factor == 1 else whole(d) * factor
        else:
            for operand, multiplier in zip(node.args, multipliers[node], strict=True):
                yield cast("fx.Node", operand), multiplier if d is _ONE else Product(whole(d), multiplier)


def _lowered(cell: nn.Module) -> fx.GraphModule:
    try:
        graph = AtomTracer().trace(cell)
    except (fx.proxy.TraceError, TypeError) as error:
        raise NotElementwiseError(f"torch.fx cannot follow the cell: {error}") from error
    model = fx.GraphModule(cell, graph)
    LowerCalls().run(model)
    return model
