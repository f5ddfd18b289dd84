"""Lower functions and methods in a graph to atoms, as rules lower modules."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn

from passes.errors import PassError
from passes.frontends.tracing import LoweringTracer
from passes.graph.dataflow import Dataflow
from passes.graph.names import free_name
from passes.leaves import Atom
from passes.operations.catalogue import lowered
from passes.operations.names import name_of_call
from passes.pipeline import Pass, PassResult


@dataclass(frozen=True)
class LoweredCall:
    """One call that became atoms.

    Args:
        name: of the node it was.
        operation: the function or method.
        atoms: how many it became.

    """

    name: str
    operation: str
    atoms: int


class LowerCalls(Pass):
    """Replace each call on varying tensors that is not linear by what its lowering builds."""

    def __init__(self) -> None:
        self.lowered: list[LoweredCall] = []

    def run(self, model: nn.Module) -> PassResult:
        """Lower what varies; the rest is a constant of the explanation."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        flow = Dataflow(model.graph)
        for node in list(model.graph.nodes):
            name, operation = node.name, name_of_call(node.target)
            placed = self._lower(model, node, flow)
            if placed is not None:
                atoms = sum(
                    each.op == "call_module"
                    and isinstance(model.get_submodule(cast("str", each.target)), Atom)
                    for each in placed
                )
                self.lowered.append(LoweredCall(name, operation, atoms))
        return PassResult(model, modified=bool(self.lowered))

    def _lower(self, model: fx.GraphModule, node: fx.Node, flow: Dataflow) -> list[fx.Node] | None:
        """Replace one call, and the calls of what replaces it; return the new nodes, None if it stays."""
        if node._erased or node.op not in ("call_function", "call_method") or node not in flow.varying:
            return None
        textbook = lowered(node.target, flow.varies, node.args, node.kwargs)
        if textbook is None:
            return None
        module, operands = textbook
        module.train(model.training)
        placed = place(model, node, module, operands, free_name(model, node.name))
        for each in placed:
            each.meta["source"] = node.meta.get("source", "")
            flow.follow(each)
        return [inner for each in placed for inner in self._lower(model, each, flow) or [each]]


def place(
    model: fx.GraphModule, node: fx.Node, module: nn.Module, operands: tuple[Any, ...], path: str
) -> list[fx.Node]:
    """Put ``module`` in the place of ``node``, written out unless it is an atom; return the new nodes."""
    graph = model.graph
    if isinstance(module, Atom):
        model.add_submodule(path, module)
        with graph.inserting_before(node):
            placed = graph.create_node("call_module", path, operands)
        _replace_uses(node, placed)
        graph.erase_node(node)
        # The graph would never give the name again.
        placed.name = node.name
        return [placed]
    # A tuple tells how many operands a variadic forward gets; torch's annotation knows of dicts only.
    each_operand = cast("dict[str, Any]", (fx._symbolic_trace.PH,) * len(operands))
    body = LoweringTracer().trace(module, concrete_args=each_operand)
    placeholders = [each for each in body.nodes if each.op == "placeholder"]
    if len(operands) != len(placeholders):
        raise PassError(f"{path}: {len(operands)} operands for {len(placeholders)} arguments")
    values: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    prefix = path.replace(".", "_")
    with graph.inserting_before(node):
        for each in body.nodes:
            args, kwargs = fx.node.map_arg((each.args, each.kwargs), values.__getitem__)
            if each.op == "output":
                _replace_uses(node, args[0])
            elif isinstance(each.target, type) and hasattr(each.target, "_fields"):
                # A named tuple is no operation: its parts are used by themselves.
                values[each] = each.target(*args)
            elif each.op == "get_attr":
                raise PassError(f"{path}: a textbook module holds no tensors, found {each.target}")
            elif each.op != "placeholder":
                target = each.target
                if each.op == "call_module":
                    target = f"{path}.{target}"
                    model.add_submodule(target, module.get_submodule(cast("str", each.target)))
                values[each] = graph.create_node(each.op, target, args, kwargs, f"{prefix}_{each.name}")
    graph.erase_node(node)
    calls = (values[each] for each in body.nodes if each.op.startswith("call_"))
    return [each for each in calls if isinstance(each, fx.Node)]


def _replace_uses(node: fx.Node, value: Any) -> None:
    """Let what used ``node`` use ``value``, a node or a tuple of nodes."""
    for user in list(node.users):
        takes = user.target in (operator.getitem, getattr) and user.args[0] is node
        item = user.args[1] if takes else None
        part: Any = None
        if isinstance(value, tuple | list):
            # Items by number, and those of a named tuple by name.
            part = value[item] if isinstance(item, int) else getattr(value, str(item), None)
        if part is not None:
            _replace_uses(user, part)
            user.graph.erase_node(user)
            continue
        args, kwargs = fx.node.map_aggregate(
            (user.args, user.kwargs), lambda each: value if each is node else each
        )
        user.args, user.kwargs = args, kwargs
