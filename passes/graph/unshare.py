"""Give every call of an atom a module of its own."""

from __future__ import annotations

from torch import fx, nn

from passes.errors import PassError
from passes.leaves import Atom
from passes.pipeline import Pass, PassResult
from passes.user_code.clone import clone_structure


class UnshareAtoms(Pass):
    """In a graph, copy an atom for each call after its first, as in a user's loop over a cell."""

    def run(self, model: nn.Module) -> PassResult:
        """Retarget the later calls; the copies sit beside the first: ``step``, ``step_call1``, …."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        calls: dict[int, int] = {}
        modified = False
        for node in model.graph.nodes:
            atom = model.get_submodule(node.target) if node.op == "call_module" else None
            if not isinstance(atom, Atom):
                continue
            k = calls.get(id(atom), 0)
            calls[id(atom)] = k + 1
            if k:
                cell, _, leaf = node.target.rpartition(".")
                node.target = f"{cell or leaf}_call{k}.{leaf}"
                model.add_submodule(node.target, clone_structure(atom))
                node._rename(node.target.replace(".", "_"))
                modified = True
        return PassResult(model, modified)

    def ensures(self, model: nn.Module) -> None:
        """No atom is called twice."""
        if not isinstance(model, fx.GraphModule):
            return
        seen: set[int] = set()
        for node in model.graph.nodes:
            atom = model.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(atom, Atom):
                if id(atom) in seen:
                    raise PassError(f"{self.name}: {node.target} is called more than once")
                seen.add(id(atom))
