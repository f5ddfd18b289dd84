"""Compute out of place what a graph writes into tensors in place."""

from __future__ import annotations

import operator
from typing import Any, cast

from torch import fx, nn

from passes.graph.dataflow import Dataflow
from passes.graph.leaf_functions import augment, clone, overwritten, set_item, with_item
from passes.graph.writes import Write, write_of
from passes.leaves import Atom
from passes.operations.catalogue import operation_of
from passes.operations.in_place import OPERATORS
from passes.operations.names import in_place_name
from passes.pipeline import Pass, PassResult

_FRESH_MODULES = (
    Atom,
    nn.Linear,
    nn.Embedding,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
)


class OutOfPlace(Pass):
    """Give every value its own node, so that each operation can have a rule.

    What was written is replaced where it is used afterwards. If something else that may share its
    memory is used afterwards, too, the write stays; what is not linear in it is then computed before.
    A tensor that the model was called with is not written to: only what the model returns is the same.
    """

    def run(self, model: nn.Module) -> PassResult:
        """Go through the writes in their order."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        memory = Memory(model)
        modified = False
        for node in list(model.graph.nodes):
            write = write_of(node)
            if write is None:
                memory.add(node)
            elif memory.is_number(node, write):
                memory.keep(node)
                modified = True
            else:
                modified |= memory.written(node, write)
        return PassResult(model, modified)


class Memory:
    """Which values of a graph may share memory.

    Args:
        model: the graph, which is changed.

    """

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.graph = model.graph
        self.flow = Dataflow(model.graph)
        self.order = {node: k for k, node in enumerate(self.graph.nodes)}
        self.sharing: dict[fx.Node, set[fx.Node]] = {}
        self.clones: set[fx.Node] = set()

    def add(self, node: fx.Node) -> None:
        """Note a node that writes nothing."""
        shared = {node}
        if not self._is_fresh(node):
            for each in node.all_input_nodes:
                shared |= self.sharing[each]
        for each in shared:
            self.sharing[each] = shared

    def is_number(self, node: fx.Node, write: Write) -> bool:
        """Whether ``n += x`` is about what may be a number: a size, say."""
        return node.target in OPERATORS and write.written not in self.flow.varying

    def keep(self, node: fx.Node) -> None:
        """Note a write that stays, as a call: ``+=`` and its kind would not survive a pickle."""
        self.add(node)
        if node.target in OPERATORS:
            node.args = (cast("Any", node.target).__name__, *node.args)
            node.target = augment
        elif node.target is operator.setitem:
            node.target = set_item

    def _is_fresh(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.model.get_submodule(str(node.target)), _FRESH_MODULES)
        if node.op == "output":
            return True
        operation = operation_of(node.target) if node.op in ("call_function", "call_method") else None
        return operation is not None and operation.fresh and in_place_name(node.target) is None

    def written(self, node: fx.Node, write: Write) -> bool:
        """Replace a write; return whether anything changed."""
        tensor = write.written
        shared = self.sharing[tensor]
        if any(each.op == "get_attr" for each in shared):
            # The state of the model.
            self.keep(node)
            return True
        others = {each for each in shared - {tensor} if self._is_used_after(each, node)}
        if not others and not any(map(self._is_users, shared)):
            new = self._value(node, write)
            self.sharing[new] = {new}
            self._use_after(node, {tensor, node}, new)
        elif others == {_base_of_view(tensor)}:
            self._through(node, write, *others)
        else:
            self._clone_first(shared)
            write = cast("Write", write_of(node))
            if write.linear:
                self.keep(node)
            else:
                self._compute_before(node, write)
        return True

    def _clone_first(self, shared: set[fx.Node]) -> None:
        """Let what is written belong to the graph: neither to the caller nor to a module's hooks."""
        for root in list(shared):
            inside = any(each in shared for each in root.all_input_nodes)
            if inside or root in self.clones or self._is_users(root):
                continue
            with self.graph.inserting_after(root):
                own = self.graph.call_function(clone, (root,))
            self.clones.add(own)
            self.flow.follow(own)
            self.order[own] = self.order[root]
            root.replace_all_uses_with(own, lambda user, own=own: user is not own)  # type: ignore[misc]
            shared.remove(root)
            shared.add(own)
            self.sharing[own], self.sharing[root] = shared, {root}

    def _is_used_after(self, value: fx.Node, node: fx.Node) -> bool:
        return any(self.order[user] > self.order[node] for user in value.users)

    def _is_users(self, node: fx.Node) -> bool:
        """Whether a module of the user's, whose inside is not known, returned this."""
        if node.op != "call_module":
            return False
        kind = type(self.model.get_submodule(str(node.target)))
        return not kind.__module__.startswith(("torch.", "passes."))

    def _value(self, node: fx.Node, write: Write) -> fx.Node:
        """Return the node of the new value."""
        value = write.args[1] if write.target is overwritten else None
        if isinstance(value, fx.Node) and value.op == "call_module" and len(value.args) == 1:
            (before,) = value.args
            if isinstance(before, fx.Node) and before.target == "clone" and before.args == (write.written,):
                # What passes.operations.elementwise.composites.InPlace computed for this.
                value.args = (write.written,)
                self.graph.erase_node(before)
                return value
        return self._insert(node, write, write.written)

    def _insert(self, node: fx.Node, write: Write, tensor: fx.Node) -> fx.Node:
        with self.graph.inserting_before(node):
            added = write.value(self.graph, tensor, node.name)
        return self._place(node, *added)

    def _place(self, node: fx.Node, *added: fx.Node) -> fx.Node:
        for each in added:
            each.meta.setdefault("source", node.meta.get("source", ""))
            self.order[each] = self.order[node]
            self.sharing[each] = {each}
            self.flow.follow(each)
        return added[-1]

    def _through(self, node: fx.Node, write: Write, base: fx.Node) -> None:
        """Write a part of ``base``, and take that part again."""
        view = write.written
        new = self._insert(node, write, view)
        with self.graph.inserting_before(node):
            whole = self._place(node, self.graph.call_function(with_item, (base, view.args[1], new)))
            part = self._place(node, self.graph.call_function(operator.getitem, (whole, view.args[1])))
        self.sharing[whole] = self.sharing[part] = {whole, part}
        self._use_after(node, {base}, whole)
        self._use_after(node, {view, node}, part)

    def _compute_before(self, node: fx.Node, write: Write) -> None:
        """Write in place what was computed out of place."""
        tensor = write.written
        with self.graph.inserting_before(node):
            before = self._place(node, self.graph.call_method("clone", (tensor,)))
        value = self._insert(node, write, before)
        with self.graph.inserting_before(node):
            copied = self._place(node, self.graph.call_method("copy_", (tensor, value)))
        self.add(copied)
        node.replace_all_uses_with(copied)
        self.graph.erase_node(node)

    def _use_after(self, node: fx.Node, old: set[fx.Node], new: fx.Node) -> None:
        """Use ``new`` for ``old`` in what comes after ``node``."""
        for each in old:
            each.replace_all_uses_with(new, lambda user: self.order[user] > self.order[node])
        if node in old:
            self.graph.erase_node(node)


def _base_of_view(node: fx.Node) -> Any:
    """Return what ``node`` is a rectangular part of, if it is known to be."""
    if node.target is not operator.getitem:
        return None
    base, index = node.args
    if not isinstance(index, tuple) or not all(
        each is None or each is Ellipsis or isinstance(each, int | slice) for each in index
    ):
        return None
    return None if any(isinstance(each, bool) for each in index) else base
