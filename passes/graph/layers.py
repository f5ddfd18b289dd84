"""Where in a graph the layers of the user's model begin and end, most of which are written out in it.

While a graph is made, taps note it: calls that take what a layer takes or gives, and whose result nobody
uses. So every pass that replaces a value replaces it for the taps, too. At the end they are taken out, and
what they told is kept in the `meta` of the graph module by the names of nodes, which do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import fx, nn

from passes.leaves import Layout
from passes.user_code.structure import map_tensors, tensors_in

_KEY = "layers"


#: Of one call of a layer: the last node before it (``""`` if there is none), its last node, and the nodes of
#: what it takes and of what it gives, each once, ``""`` for what nothing uses. Plain tuples, so that a pickle
#: of them names no class.
Call = tuple[str, str, tuple[str, ...], tuple[str, ...]]
#: By the name of the layer; None if it is called more than once.
Layers = dict[str, Call | None]


def layer_tap(values: Any, layer: str, side: str) -> None:
    """Stand in a graph where a layer takes ("input") or gives ("output") values, or is called "again"."""


def proxies_in(values: Any) -> list[fx.Proxy]:
    """Return what stands for values in arguments, or in a result, that are being traced, each once."""
    found: dict[fx.Node, fx.Proxy] = {}

    def note(each: Any) -> Any:
        if isinstance(each, fx.Proxy):
            found.setdefault(each.node, each)
        return each

    fx.node.map_aggregate(values, note)
    return list(found.values())


def layer_calls(model: nn.Module) -> Layers:
    """Return the call of each layer that a graph was made of, by name; None where there are several.

    The graph itself is one, by the name ``""``.

    Example:
        >>> layer_calls(nn.Tanh()), layer_calls(fx.symbolic_trace(nn.Sequential(nn.Tanh())))
        ({}, {'': ('input_1', '_0', ('input_1',), ('_0',))})

    """
    if not isinstance(model, fx.GraphModule):
        return {}
    nodes = list(model.graph.nodes)
    inputs = [node.name for node in nodes if node.op == "placeholder"]
    outputs = [node.name for node in nodes[-1].all_input_nodes]
    whole = ("", *inputs)[-1], nodes[-2].name, tuple(inputs), tuple(outputs)
    return {"": whole, **model.meta.get(_KEY, {})}


def keep_layers(model: fx.GraphModule, calls: Layers) -> None:
    """Note the calls of layers, and have a module by the name of each, also of those that left none."""
    model.meta[_KEY] = calls
    add_layers(model)


def add_layers(model: fx.GraphModule) -> None:
    """Put an empty module where a layer has no module in the graph, in the mode of what it is a part of."""
    for name in model.meta.get(_KEY, {}):
        module: nn.Module = model
        for part in name.split("."):
            if part not in module._modules:
                module.add_module(part, nn.Module().train(module.training))
            module = module.get_submodule(part)


def take_taps(graph: fx.Graph) -> Layers:
    """Take the taps out of a graph, and return what they told.

    Example:
        >>> graph = fx.Graph()
        >>> x = graph.placeholder("x")
        >>> _ = graph.call_function(layer_tap, ([x], "act", "input"))
        >>> y = graph.call_method("abs", (x,))
        >>> _ = graph.call_function(layer_tap, (y, "act", "output"))
        >>> take_taps(graph)["act"], len(graph.nodes)
        (('x', 'abs_1', ('x',), ('abs_1',)), 2)

    """
    sides: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {}
    last = ""
    for node in list(graph.nodes):
        if node.target is not layer_tap:
            last = node.name
            continue
        _, layer, side = node.args
        sides[layer, side] = last, tuple(_names(node.args[0]))
        graph.erase_node(node)
    calls: Layers = {}
    for layer, side in sides:
        if side == "input" and (layer, "output") in sides:
            (begin, inputs), (end, outputs) = sides[layer, "input"], sides[layer, "output"]
            calls[layer] = None if (layer, "again") in sides else (begin, end, inputs, outputs)
    return calls


def _names(values: Any) -> list[str]:
    """Return the names of nodes, ``""`` for one that was unused and is gone."""
    if isinstance(values, tuple | list):
        return [name for each in values for name in _names(each)]
    return [values.name] if isinstance(values, fx.Node) else [""]


def drop_from_taps(node: fx.Node, instead: fx.Node | None = None) -> None:
    """Let taps, the only users of a node, keep its place without it, or with another."""

    def kept(each: fx.Node) -> fx.Node | None:
        return instead if each is node else each

    for tap in list(node.users):
        tap.args = fx.node.map_arg(tap.args, kept)


def put_taps(model: fx.GraphModule) -> None:
    """Put the taps back in, for passes that are to follow."""
    nodes = {node.name: node for node in model.graph.nodes}
    for name, call in model.meta.get(_KEY, {}).items():
        begin, end, inputs, outputs = call or ("", "", (), ())
        for side, behind, values in (("input", begin, inputs), ("output", end, outputs)):
            with _behind(model.graph, nodes, behind):
                model.graph.call_function(layer_tap, ([nodes.get(each) for each in values], name, side))
        if call is None:
            model.graph.call_function(layer_tap, ((), name, "again"))


def _behind(graph: fx.Graph, nodes: dict[str, fx.Node], name: str) -> AbstractContextManager[None]:
    return graph.inserting_before(nodes[name].next if name else next(iter(graph.nodes)))


class LayerBoundary(Layout):
    """Lets what a layer takes, or gives, go through a function.

    Args:
        change: takes a tuple of what is used, and returns one of the same form with other tensors.

    Example:
        >>> import torch
        >>> boundary = LayerBoundary(lambda values: (values[0] + 1,))
        >>> boundary.used = [[(0,)]]
        >>> boundary((torch.zeros(1), torch.ones(1)))
        ((tensor([1.]), tensor([1.])),)

    """

    def __init__(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        super().__init__()
        self.change = change
        # Of each value, the items that are used, by the indices that lead to them.
        self.used: list[list[tuple[int, ...]]] = []

    def forward(self, *values: Any) -> tuple[Any, ...]:
        """Return the values with other tensors in them."""
        picked = tuple(
            _item(value, path) for value, paths in zip(values, self.used, strict=True) for path in paths
        )
        changed = zip(tensors_in(picked), tensors_in(self.change(picked)), strict=True)
        found = {id(old): new for old, new in changed}
        mapped: tuple[Any, ...] = map_tensors(lambda each: found.get(id(each), each), values)
        return mapped


def _item(value: Any, path: tuple[int, ...]) -> Any:
    for index in path:
        # Also of a tensor an item may be taken, and no layer gives that.
        if not isinstance(value, tuple | list):
            break
        value = value[index]
    return value
