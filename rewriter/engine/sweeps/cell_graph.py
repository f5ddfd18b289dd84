"""The graph of a cell's step, read backwards: how multipliers of the new state reach what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from passes.graph.tracer import AtomTracer
from passes.leaves import Atom
from passes.operations.catalogue import operation_of
from passes.operations.names import is_pointwise
from passes.operations.operation import Kind
from passes.operations.table import rule_of
from passes.user_code.clone import clone_structure

# Features of the state for which the graph is tried out: enough to see their order.
_WIDTH = 3


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


class NotElementwiseError(Exception):
    """An element of a cell's new state depends on others of the old one than its own."""


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
        cell: takes both parts of the gates and the old state, returns the new state.

    Raises:
        NotElementwiseError: for a cell that is made of anything else.

    """

    def __init__(self, cell: nn.Module) -> None:
        # Of its own: the atoms of the caller's may be given other forwards.
        self.cell = clone_structure(cell)
        self.graph = AtomTracer().trace(self.cell)
        self.gates = len(cell.gates)  # type: ignore[arg-type]  # every cell has this class attribute
        x, h, *self.old = (node for node in self.graph.nodes if node.op == "placeholder")
        (output,) = next(node for node in self.graph.nodes if node.op == "output").args
        self.new = list(cast("Sequence[fx.Node]", output))
        self.inputs = x, h
        self.atoms = [node for node in self.graph.nodes if node.op == "call_module"]
        if not self.atoms:
            raise NotElementwiseError("the cell has no atoms")
        self.kept = list(dict.fromkeys(each for node in self.atoms for each in (*node.all_input_nodes, node)))
        #: Number by which a linear node takes each of its operands.
        self.linear: dict[fx.Node, dict[fx.Node, float]] = {}
        for node in self.graph.nodes:
            self._check(node)
        joined = self._sum_of_inputs()
        #: Where both parts of the gates enter: their sum, or the hidden state's part and the input's.
        self.entrances = [joined] if joined else [h, x]
        #: The slot of the gates that a node is.
        self.slots = self._slots()

    def _check(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "output"):
            return
        if node.op == "call_module":
            atom = self.cell.get_submodule(str(node.target))
            rule = rule_of(atom) if isinstance(atom, Atom) else None
            if rule is None or not rule.elementwise:
                raise NotElementwiseError(f"{node.target} has no elementwise rule")
            return
        operation = operation_of(node.target)
        if operation is None or operation.kind not in (Kind.LINEAR, Kind.PRODUCT):
            raise NotElementwiseError(f"{node.target} has no rule")
        if is_pointwise(node.target):
            self.linear[node] = _taken_times(node)

    def _sum_of_inputs(self) -> fx.Node | None:
        """Return the node that adds both parts of the gates, if nothing else takes either."""
        users = {user for each in self.inputs for user in each.users}
        only = users.pop() if len(users) == 1 else None
        ones = dict.fromkeys(self.inputs, 1.0)
        return only if only is not None and self.linear.get(only) == ones else None

    def _slots(self) -> dict[fx.Node, int]:
        """Find the slots of the gates that nodes are, by what becomes of numbers in their order."""
        values: dict[fx.Node, Any] = {}
        for k, entrance in enumerate(self.entrances):
            first = k * self.gates * _WIDTH
            values[entrance] = torch.arange(first, first + self.gates * _WIDTH).unsqueeze(0)
        slots = {node: k for k, node in enumerate(self.entrances)} if self.gates == 1 else {}
        for node in self.graph.nodes:
            if node.op not in ("call_function", "call_method") or node in self.linear:
                continue
            if not all(each in values for each in node.all_input_nodes):
                raise NotElementwiseError(f"{node.target} may mix elements of the state")
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = _run(node, args, kwargs)
            if isinstance(values[node], Tensor):
                slots[node] = _slot_of(values[node], str(node))
        return slots

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
        return fx.GraphModule(self.cell, graph)

    def backward(self, pairs: Mapping[fx.Node, tuple[Tensor, Tensor]]) -> list[tuple[int, Reached]]:
        """Take a one from each new state back to the next ones, the gates and the old states.

        Args:
            pairs: what is kept, of samples and references, in shapes that broadcast.

        Returns:
            The number of each new state with what it reaches; none before one that it is made of.

        """
        multipliers = {node: self._multipliers(node, pairs) for node in self.atoms}
        place = {node: k for k, node in enumerate(self.graph.nodes)}
        ordered = sorted(range(len(self.new)), key=lambda k: place[self.new[k]], reverse=True)
        return [(k, self._reached(self.new[k], multipliers)) for k in ordered]

    def _multipliers(
        self, node: fx.Node, pairs: Mapping[fx.Node, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, ...]:
        rule = rule_of(self.cell.get_submodule(str(node.target)))
        assert rule is not None
        assert rule.multipliers is not None
        x, x0 = zip(*(pairs[cast("fx.Node", each)] for each in node.args), strict=True)
        return rule.multipliers(x, x0, *pairs[node])

    def _reached(self, start: fx.Node, multipliers: Mapping[fx.Node, tuple[Tensor, ...]]) -> Reached:
        pending: dict[fx.Node, Multiplier] = {start: _ONE}
        found = Reached({}, {}, {})
        for node in reversed(self.graph.nodes):
            d = pending.pop(node, None)
            if d is None:
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
        if node in self.linear:
            for source, factor in self.linear[node].items():
                yield source, d if factor == 1 else whole(d) * factor
        else:
            for operand, multiplier in zip(node.args, multipliers[node], strict=True):
                yield cast("fx.Node", operand), multiplier if d is _ONE else Product(whole(d), multiplier)


def _run(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if callable(node.target):
        return node.target(*args, **kwargs)
    return getattr(args[0], node.target)(*args[1:], **kwargs)


def _taken_times(node: fx.Node) -> dict[fx.Node, float]:
    """Return the number by which a linear node takes each of its operands."""

    def value(ones: Sequence[fx.Node]) -> float:
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda each: torch.tensor(float(each in ones), dtype=torch.float64)
        )
        return float(_run(node, args, kwargs))

    operands = node.all_input_nodes
    found = {each: value([each]) - value([]) for each in operands}
    if value(operands) - value([]) != sum(found.values()):
        raise NotElementwiseError(f"{node.target} is a product of operands that vary")
    return found


def _slot_of(numbers: Tensor, node: str) -> int:
    slot = int(numbers.flatten()[0]) // _WIDTH if numbers.numel() else 0
    expected = torch.arange(slot * _WIDTH, (slot + 1) * _WIDTH).unsqueeze(0)
    if not torch.equal(numbers, expected):
        raise NotElementwiseError(f"{node} is no whole piece of the gates")
    return slot
