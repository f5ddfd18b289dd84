"""Remove what a lowering leaves behind."""

from __future__ import annotations

import operator

from torch import fx, nn

from passes.errors import PassError
from passes.graph.graph_module import graph_module
from passes.pipeline import Pass, PassResult


class Cleanup(Pass):
    """Drop unused tuple items, and the modules that no node of the graph refers to."""

    def run(self, model: nn.Module) -> PassResult:
        """Return a GraphModule with nothing in it but what its graph uses."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        for node in reversed(model.graph.nodes):
            if _is_item(node) and not node.users:
                model.graph.erase_node(node)
        cleaned = graph_module(model, model.graph)
        cleaned.meta.update(model.meta)
        return PassResult(cleaned, modified=True, compiled=True)

    def ensures(self, model: nn.Module) -> None:
        """Every item that is taken is used."""
        if isinstance(model, fx.GraphModule) and any(
            _is_item(node) and not node.users for node in model.graph.nodes
        ):
            raise PassError(f"{self.name}: an unused item is left")


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem
