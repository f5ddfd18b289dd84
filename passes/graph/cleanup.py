"""Remove what a lowering leaves behind."""

from __future__ import annotations

import operator
from typing import cast

from torch import fx, nn

from passes.errors import PassError
from passes.graph.graph_module import graph_module
from passes.graph.layers import drop_from_taps, keep_layers, layer_tap, take_taps
from passes.graph.leaf_functions import with_item
from passes.pipeline import Pass, PassResult


class Cleanup(Pass):
    """Drop unused tuple items, the modules that no node of the graph refers to, and taps."""

    def run(self, model: nn.Module) -> PassResult:
        """Return a GraphModule with nothing in it but what its graph uses."""
        if not isinstance(model, fx.GraphModule):
            return PassResult(model, modified=False)
        for node in reversed(model.graph.nodes):
            if _is_item(node) and all(user.target is layer_tap for user in node.users):
                drop_from_taps(node, _written_there(node))
                model.graph.erase_node(node)
        layers = take_taps(model.graph)
        cleaned = graph_module(model, model.graph)
        cleaned.meta.update(model.meta)
        keep_layers(cleaned, layers)
        return PassResult(cleaned, modified=True, compiled=True)

    def ensures(self, model: nn.Module) -> None:
        """Every item that is taken is used."""
        if isinstance(model, fx.GraphModule) and any(
            _is_item(node) and not node.users for node in model.graph.nodes
        ):
            raise PassError(f"{self.name}: an unused item is left")


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def _written_there(node: fx.Node) -> fx.Node | None:
    """Return what was written where an item was taken, if that is told."""
    whole, index = node.args
    if isinstance(whole, fx.Node) and whole.target is with_item and whole.args[1] == index:
        return cast("fx.Node | None", whole.args[2])
    return None
