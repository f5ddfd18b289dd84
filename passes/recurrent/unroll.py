"""Write the steps of recurrences out: from the rolled to the flat level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from passes.errors import InputError
from passes.graph.graph_module import graph_module
from passes.graph.tracer import AtomTracer
from passes.leaves import Layout
from passes.pipeline import Pass, PassResult
from passes.recurrent.recurrence import Recurrence, State, run
from passes.user_code.clone import clone_structure


class Call(NamedTuple):
    """One call of a recurrence.

    Args:
        length: number of steps.
        masked: whether sequences of different length were packed together.

    """

    length: int
    masked: bool


class ExpectSteps(Layout):
    """Guard the entrance of an unrolled recurrence, which fits one length only.

    Args:
        name: qualified name of the layer, for the error message.
        call: what the recurrence was unrolled for.

    Example:
        >>> gates, mask = ExpectSteps("lstm.layer0", Call(2, masked=False))(torch.zeros(2, 1, 4), None)
        >>> gates.shape
        torch.Size([2, 1, 4])

    """

    def __init__(self, name: str, call: Call) -> None:
        super().__init__()
        self.name = name
        self.call = call

    def forward(self, gates: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the arguments, with a mask exactly when the steps need one.

        Raises:
            InputError: if the length, or packing, is not what was unrolled.

        """
        length, masked = self.call
        if gates.shape[0] != length:
            raise InputError(
                f"{self.name}: unrolled for sequences of {length} steps, got {gates.shape[0]}; unroll it "
                "again for that length, or call decompose(model) without example inputs for any length"
            )
        if mask is not None and not masked:
            raise InputError(
                f"{self.name}: unrolled for sequences of equal length, got a packed batch of different "
                "lengths; unroll it with such an example"
            )
        if mask is None and masked:
            mask = torch.ones(length, 1, 1, dtype=torch.bool, device=gates.device)
        return gates, mask


class _Clock:
    """Tells the tracer which step of which recurrence it is in."""

    step: int | None = None


class Unrolled(nn.Module):
    """A recurrence with the atoms of every step written out; exists only to be traced.

    Steps own their atoms and nothing else: the shared Linears belong to the recurrence.
    """

    def __init__(self, recurrence: Recurrence, call: Call, clock: _Clock) -> None:
        super().__init__()
        self.hidden = recurrence.hidden
        self.projection = recurrence.projection
        self.reverse = recurrence.reverse
        self.states = recurrence.states
        self.expect = ExpectSteps(recurrence.name, call)
        self.call = call
        self.clock = clock
        for t in range(call.length):
            self.add_module(f"t{t}", clone_structure(recurrence.cell))

    def forward(self, gates: Tensor, mask: Tensor | None, *state: Tensor) -> State:
        """Run all steps as :class:`Recurrence` does."""
        state = tuple(state[k] for k in range(self.states))
        guarded = self.expect(gates, mask)
        gates, mask = guarded[0], guarded[1] if self.call.masked else None
        # Not gates[t]: the gradient of each of those would be a tensor for all steps, T² numbers in sum.
        steps = gates.unbind(0)
        selected = []
        for t in range(self.call.length):
            self.clock.step = t
            selected.append(steps[t])
        result = run(self, self.cell_at, selected, mask, state, reverse=self.reverse)
        self.clock.step = None
        return result

    def cell_at(self, t: int) -> nn.Module:
        """Return the atoms of step ``t``."""
        self.clock.step = t
        return self.get_submodule(f"t{t}")


class UnrolledByLength(nn.Module):
    """The same recurrence unrolled for several lengths; for a module that is called with each of them."""

    def __init__(self, name: str, variants: Mapping[Call, nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.lengths: dict[tuple[int, bool], str] = {}
        for call, variant in variants.items():
            child = f"T{call.length}" + ("_masked" if call.masked else "")
            self.lengths[call.length, call.masked] = child
            self.add_module(child, variant)

    def forward(self, gates: Tensor, mask: Tensor | None, *state: Tensor) -> State:
        """Run the variant that fits, or raise InputError."""
        length = gates.shape[0]
        child = self.lengths.get((length, mask is not None)) or self.lengths.get((length, True))
        if child is None:
            known = ", ".join(sorted({str(known) for known, _ in self.lengths}))
            raise InputError(
                f"{self.name}: unrolled for sequences of {known} steps, got {length}; decompose the model "
                "with an example of that length, or without example inputs for any length"
            )
        result: State = self.get_submodule(child)(gates, mask, *state)
        return result


class _StepNames(AtomTracer):
    """Trace an :class:`Unrolled`, naming each node after its step."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = clock

    def node_name(self, kind: str, target: Any) -> str | None:
        """Give every node of step t a name that begins with ``t{t}_``."""
        operation = target if isinstance(target, str) else target.__name__
        if self.clock.step is None or not kind.startswith("call_") or operation == "stack":
            return None
        name, prefix = operation.replace(".", "_"), f"t{self.clock.step}_"
        if name.startswith(prefix):
            return None
        return f"{prefix}{name}" + ("_linear" if kind == "call_module" else "")


def trace_steps(recurrence: Recurrence, call: Call) -> fx.GraphModule:
    """Return a graph with the signature of ``recurrence`` and every step written out.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> rolled = Recurrence(nn.Linear(2, 2), RNNCellAtoms("tanh"))
        >>> flat = trace_steps(rolled, Call(2, masked=False))
        >>> [node.name for node in flat.graph.nodes if node.op == "call_module"]
        ['expect', 't0_hidden_linear', 't0_hidden_state_tanh', 't1_hidden_linear', 't1_hidden_state_tanh']

    """
    return graph_module(*_traced(recurrence, call))


def _traced(recurrence: Recurrence, call: Call) -> tuple[Unrolled, fx.Graph]:
    clock = _Clock()
    unrolled = Unrolled(recurrence, call, clock).train(recurrence.training)
    return unrolled, _StepNames(clock).trace(unrolled)


class Unroll(Pass):
    """Replace each recurrence by its steps.

    Args:
        calls: the calls of each recurrence in the order in which they are made, by ``id`` of the
            module. A recurrence that is never called stays rolled.

    """

    def __init__(self, calls: Mapping[int, list[Call]]) -> None:
        self.calls = {key: made for key, made in calls.items() if made}

    def run(self, model: nn.Module) -> PassResult:
        """Inline the steps in a graph; give a recurrence in the user's own code a graph of its own."""
        if not any(id(module) in self.calls for module in model.modules()):
            return PassResult(model, modified=False)
        if isinstance(model, fx.GraphModule):
            self._unroll_nodes(model)
        self._unroll_modules(model)
        return PassResult(model, modified=True)

    def _unroll_nodes(self, model: fx.GraphModule) -> None:
        called: dict[int, int] = {}
        written = self._matched(model)
        placed: list[tuple[str, Unrolled]] = []
        for node in list(model.graph.nodes):
            module = model.get_submodule(node.target) if node.op == "call_module" else None
            if module is None or id(module) not in written:
                continue
            k = called.get(id(module), 0)
            called[id(module)] = k + 1
            path = node.target if k == 0 else f"{node.target}_call{k}"
            steps, graph = _traced(cast("Recurrence", module), written[id(module)][k])
            inline(model.graph, node, graph, path)
            placed.append((path, steps))
        for path, steps in placed:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, steps)

    def _matched(self, model: fx.GraphModule) -> dict[int, list[Call]]:
        """Tell the calls that nodes make from those that the user's code makes in between."""
        nodes: dict[int, int] = {}
        for node in model.graph.nodes:
            if node.op == "call_module":
                key = id(model.get_submodule(node.target))
                nodes[key] = nodes.get(key, 0) + 1
        return {
            key: made if len(made) == nodes.get(key) else made[:1] * nodes.get(key, 0)
            for key, made in self.calls.items()
            if len(made) == nodes.get(key) or len(set(made)) == 1
        }

    def _unroll_modules(self, model: nn.Module) -> None:
        flat: dict[int, nn.Module] = {}
        for parent in list(model.modules()):
            for child, module in list(parent._modules.items()):
                if module is not None and id(module) in self.calls:
                    if id(module) not in flat:
                        flat[id(module)] = self._for_all_lengths(cast("Recurrence", module))
                    parent._modules[child] = flat[id(module)]

    def _for_all_lengths(self, recurrence: Recurrence) -> nn.Module:
        variants = {call: trace_steps(recurrence, call) for call in self.calls[id(recurrence)]}
        if len(variants) == 1:
            return next(iter(variants.values()))
        return UnrolledByLength(recurrence.name, variants).train(recurrence.training)


def inline(graph: fx.Graph, node: fx.Node, body: fx.Graph, path: str) -> None:
    """Replace ``node``, whose value is a tuple, by the nodes of ``body``, placed below ``path``."""
    values: dict[fx.Node, Any] = {}
    arguments = iter(node.args)
    prefix = path.replace(".", "_")
    with graph.inserting_before(node):
        for each in body.nodes:
            if each.op == "placeholder":
                star = each.target.startswith("*")
                values[each] = tuple(arguments) if star else next(arguments)
            elif each.op == "output":
                _replace_items(graph, node, _mapped(each.args[0], values))
            elif isinstance(values.get(each.args[0]), tuple):
                # An item of the state, whose items are known here.
                values[each] = values[each.args[0]][each.args[1]]
            else:
                target = f"{path}.{each.target}" if each.op == "call_module" else each.target
                args, kwargs = _mapped(each.args, values), _mapped(each.kwargs, values)
                values[each] = graph.create_node(each.op, target, args, kwargs, f"{prefix}_{each.name}")
    graph.erase_node(node)


def _mapped(arguments: Any, values: Mapping[fx.Node, Any]) -> Any:
    return fx.node.map_arg(arguments, lambda each: values[each])


def _replace_items(graph: fx.Graph, node: fx.Node, items: Sequence[Any]) -> None:
    for user in list(node.users):
        user.replace_all_uses_with(items[cast("int", user.args[1])])
        graph.erase_node(user)
