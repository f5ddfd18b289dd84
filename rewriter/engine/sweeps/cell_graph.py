"""The graph of a cell's step, read backwards: how multipliers of the new state reach what it is made of.

Its values are rows of H numbers, or several side by side. Most of what a step does acts on each number by
itself; a norm takes whole rows.
"""

from __future__ import annotations

import operator
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
from passes.operations.norms.standardize import Standardize
from passes.operations.operation import Kind
from passes.operations.table import rule_of
from passes.user_code.clone import clone_structure
from rewriter.engine.rules import multipliers_of
from rewriter.engine.sweeps.pieces import Piece, Pieces
from rewriter.engine.sweeps.tried_out import NotElementwiseError as NotElementwiseError
from rewriter.engine.sweeps.tried_out import constant, scaled_by, taken_times

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
        # A cell of a loop of the user's own is for one size.
        self.pieces = Pieces(self.width or _WIDTHS[0])
        for node in (x, h):
            self.pieces.make(node, self.gates)
        for node in self.old:
            self.pieces.make(node, 1)
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
        #: Norms of whole rows, among the atoms.
        self.norms: dict[fx.Node, Standardize] = {}
        for node in self.graph.nodes:
            self._check(node)
        if any(len(self.pieces.of[each]) != 1 for each in self.new):
            raise NotElementwiseError("a new state has another size than the old one")
        if self.width is None:
            self.pieces.at(_WIDTHS[1])
        #: What the rules take: of norms what they gave, of other atoms what they took, too.
        self.kept = list(
            dict.fromkeys(
                each
                for node in self.atoms
                for each in (*(() if node in self.norms else node.all_input_nodes), node)
            )
        )
        joined = self._sum_of_inputs()
        #: Where both parts of the gates enter: their sum, or the hidden state's part and the input's.
        self.entrances = [joined] if joined else [h, x]
        #: The slots of the gates.
        self.slots: dict[Piece, int] = {
            (node, k): begin * self.gates + k
            for begin, node in enumerate(self.entrances)
            for k in range(self.gates)
        }

    def _check(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "output", "get_attr"):
            return
        moving = [each for each in node.all_input_nodes if self.flow.varies(each)]
        if node.op == "call_module":
            self._check_atom(node)
            self.pieces.compute(node, moving)
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
        if not flow.varies(node):
            return
        # An operator is known to torch by the name of its function.
        if not (is_pointwise(node.target) or is_pointwise(operation.name)):
            self.pieces.move(node)
            return
        self.pieces.compute(node, moving)
        try:
            self.linear[node] = taken_times(node, flow.varies)
        except NotElementwiseError:
            if self.width is None or moving == node.all_input_nodes:
                raise
            self.scaled[node] = self.factors(node)

    def _check_atom(self, node: fx.Node) -> None:
        atom = self.model.get_submodule(str(node.target))
        if node.kwargs or not all(isinstance(each, fx.Node) and self.flow.varies(each) for each in node.args):
            # What is kept of each step, for the rule, has the batch's rows.
            raise NotElementwiseError(f"{node.target} takes what does not vary")
        if isinstance(atom, Standardize) and self.width is not None:
            whole = len(self.pieces.of[node.all_input_nodes[0]]) * self.width
            if atom.dims(2) == (-1,) and atom.over in (-1, 1, (whole,)):
                self.norms[node] = atom
                return
        rule = rule_of(atom) if isinstance(atom, Atom) else None
        if rule is None or not rule.elementwise:
            raise NotElementwiseError(f"{node.target} has no elementwise rule")

    def _sum_of_inputs(self) -> fx.Node | None:
        """Return the node that adds both parts of the gates, if nothing else takes either."""
        users = {user for each in self.inputs for user in each.users}
        only = users.pop() if len(users) == 1 else None
        ones = dict.fromkeys(self.inputs, 1.0)
        return only if only is not None and self.linear.get(only) == ones else None

    def factors(self, node: fx.Node) -> dict[fx.Node, Tensor]:
        """Return by what numbers, one per feature of its result, a call takes what varies, as they are now.

        Raises:
            NotElementwiseError: if there are none, the same wherever the call is tried out.

        """
        assert self.width is not None
        features = self.width * len(self.pieces.of[node])
        return scaled_by(node, self.flow.varies, lambda each: constant(self.model, each), features)

    def reaches(self, old: fx.Node) -> bool:
        """Whether a new state is made of an old one past the gates."""
        seen: set[fx.Node] = set()
        pending = [*self.new]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += node.all_input_nodes
        return old in seen

    def forward(self) -> Callable[..., tuple[Tensor, ...]]:
        """Compile a step: of the gates and the old state, to the new state and what is kept.

        What is kept of norms comes last: what they have multiplied each row by.
        """
        graph = fx.Graph()
        values: dict[fx.Node, Any] = {}
        factors: list[fx.Node] = []
        for node in self.graph.nodes:
            if len(self.entrances) == 1 and node is self.entrances[0]:
                values[node] = values[self.inputs[0]]
            elif node.op == "output":
                graph.output((*(values[each] for each in (*self.new, *self.kept)), *factors))
            elif node in self.norms:
                norm = self.norms[node]
                given = values[node.all_input_nodes[0]], norm.eps, norm.centred
                both = graph.call_function(standardized, given)
                values[node] = graph.call_function(operator.getitem, (both, 0))
                factors.append(graph.call_function(operator.getitem, (both, 1)))
            elif node.op == "call_module":
                # What surrounds the call of a module takes longer than most atoms do.
                atom = self.model.get_submodule(str(node.target))
                values[node] = graph.call_function(
                    _without_hooks(atom), tuple(values[each] for each in node.args)
                )
            else:
                values[node] = graph.node_copy(node, values.__getitem__)
        return fx.GraphModule(self.model, graph)

    def backward(
        self,
        pairs: Mapping[fx.Node, tuple[Tensor, Tensor]],
        *,
        anew: bool = True,
        through: bool = False,
    ) -> list[tuple[int, Reached]]:
        """Take a one from each new state back to the next ones, the gates and the old states.

        Args:
            pairs: what is kept, of samples and references, in shapes that broadcast.
            anew: read the cell's parameters as they are now; else as they were when they were read last.
            through: go on through new states that another is made of.

        Returns:
            The number of each new state with what it reaches; none before one that it is made of.

        """
        assert not self.norms, "a norm mixes what is taken back element by element here"
        multipliers = {node: self._multipliers(node, pairs) for node in self.atoms}
        # The parameters may have been written to.
        if anew:
            self.scaled = {node: self.factors(node) for node in self.scaled}
        place = {node: k for k, node in enumerate(self.graph.nodes)}
        ordered = sorted(range(len(self.new)), key=lambda k: place[self.new[k]], reverse=True)
        return [(k, self._reached(self.new[k], multipliers, through)) for k in ordered]

    def _multipliers(
        self, node: fx.Node, pairs: Mapping[fx.Node, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        rule = rule_of(self.model.get_submodule(str(node.target)))
        assert rule is not None
        return multipliers_of(rule, [pairs[cast("fx.Node", each)] for each in node.args], pairs[node])

    def _reached(
        self, start: fx.Node, multipliers: Mapping[fx.Node, tuple[Tensor, ...]], through: bool
    ) -> Reached:
        (first,) = self.pieces.of[start]
        pending: dict[Piece, Multiplier] = {first: _ONE}
        states = {} if through else {self.pieces.of[node][0]: k for k, node in enumerate(self.new)}
        found = Reached({}, {}, {})
        for piece in self.backwards():
            d = pending.pop(piece, None)
            if d is None:
                continue
            if piece in self.slots:
                found.gates[self.slots[piece]] = d
            elif piece[0] in self.old:
                found.old[self.old.index(piece[0])] = d
            elif piece in states and piece != first:
                found.new[states[piece]] = d
            else:
                for source, part in self._passed(piece, d, multipliers):
                    pending[source] = whole(pending[source]) + whole(part) if source in pending else part
        return found

    def backwards(self) -> Iterator[Piece]:
        """Yield what is computed, or comes in, each behind all that is made of it."""
        for node in reversed(self.graph.nodes):
            own = self.pieces.of.get(node, ())
            if own and own[0][0] is node:
                yield from own

    def part(self, numbers: Tensor, piece: Piece) -> Tensor:
        """Return what belongs to one of the rows of a node."""
        count = len(self.pieces.of[piece[0]])
        return numbers if count == 1 else numbers.chunk(count, -1)[piece[1]]

    def _passed(
        self, piece: Piece, d: Multiplier, multipliers: Mapping[fx.Node, tuple[Tensor, ...]]
    ) -> Iterator[tuple[Piece, Multiplier]]:
        node, k = piece
        if node in self.scaled:
            for source, numbers in self.scaled[node].items():
                yield self.pieces.of[source][k], whole(d) * self.part(numbers, piece)
        elif node in self.linear:
            for source, factor in self.linear[node].items():
                yield self.pieces.of[source][k], d if factor == 1 else whole(d) * factor
        else:
            for operand, whole_multiplier in zip(node.args, multipliers[node], strict=True):
                multiplier = self.part(whole_multiplier, piece)
                passed = multiplier if d is _ONE else Product(whole(d), multiplier)
                yield self.pieces.of[cast("fx.Node", operand)][k], passed


def _without_hooks(atom: nn.Module) -> Callable[..., Any]:
    # torch.fx writes no methods of torch's classes.
    def atom_forward(*operands: Tensor) -> Any:
        return type(atom).forward(atom, *operands)

    return atom_forward


def standardized(x: Tensor, eps: float | None, centred: bool) -> tuple[Tensor, Tensor]:
    """Return rows with root mean square 1, and what they were multiplied by, (B, 1).

    Args:
        x: (B, F).
        eps: added to the mean of the squares; None for the precision of the dtype.
        centred: take the mean off before.

    Example:
        >>> standardized(torch.tensor([[-2.0, 2.0]]), 0.0, True)
        (tensor([[-1.,  1.]]), tensor([[0.5000]]))

    """
    if centred:
        y, _, factor = torch.native_layer_norm(x, x.shape[-1:], None, None, eps or 0.0)
        return y, factor
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    factor = x.square().mean(-1, keepdim=True).add(eps).rsqrt()
    return x * factor, factor


def _lowered(cell: nn.Module) -> fx.GraphModule:
    try:
        graph = AtomTracer().trace(cell)
    except (fx.proxy.TraceError, TypeError) as error:
        raise NotElementwiseError(f"torch.fx cannot follow the cell: {error}") from error
    model = fx.GraphModule(cell, graph)
    LowerCalls().run(model)
    return model
