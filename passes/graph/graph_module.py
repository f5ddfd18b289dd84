"""The GraphModule that a lowering produces."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import fx, nn
from torch.fx.graph import PythonCode

from passes.graph.layers import Layers, add_layers, keep_layers, layer_calls
from passes.graph.tracer import GraphTracer


class Lowered(fx.GraphModule):
    """A GraphModule whose nodes keep their names when it is pickled.

    torch.fx pickles a graph as code and traces that code again, which names every node anew.
    """

    def recompile(self) -> PythonCode:
        """Compile the graph, to be called without torch's own call: that prints tracebacks of errors."""
        code = super().recompile()
        # torch makes a class for each graph.
        kind: Any = type(self)
        if "__call__" in vars(kind):
            del kind.__call__
        kind.forward_of_graph = kind.forward
        kind.forward = _after_what_comes_before(kind.forward)
        return code

    def before_call(self, hook: Callable[..., None]) -> None:
        """Let ``hook`` see each call before it is made: the model, its arguments and keyword arguments."""
        object.__setattr__(self, "_before_call", hook)
        # So that it survives copy.deepcopy.
        self.meta.setdefault("_user_preserved_attributes", {})["_before_call"] = hook

    def takes_by_name(self) -> bool:
        """Whether each argument has a name: none is taken with a star."""
        inputs = (str(node.target) for node in self.graph.nodes if node.op == "placeholder")
        return not any(name.startswith("*") for name in inputs)

    def become(self, module: nn.Module) -> str:
        """Call a module with all that is given, in place of the graph; return the name that it has here.

        Example:
            >>> import torch
            >>> traced = nn.Sequential(nn.Tanh())
            >>> model = graph_module(traced, fx.symbolic_trace(traced).graph)
            >>> name = model.become(nn.ReLU())
            >>> model(-torch.ones(1))
            tensor([0.])

        """
        kinds = inspect.signature(module.forward).parameters
        graph = fx.Graph(tracer_cls=GraphTracer)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                given = graph.node_copy(node, lambda each: each)
                if kinds[str(node.target)].kind is inspect.Parameter.KEYWORD_ONLY:
                    kwargs[str(node.target)] = given
                else:
                    args.append(given)
        name = "code"
        while hasattr(self, name):
            name = f"{name}_"
        self.add_module(name, module)
        graph.output(graph.call_module(name, tuple(args), kwargs))
        self.graph = graph
        # Their places were in the other graph; in the code they are modules.
        keep_layers(self, {})
        self.delete_all_unused_submodules()
        return name

    def __deepcopy__(self, memo: dict[int, Any]) -> Lowered:
        copied = cast("Lowered", super().__deepcopy__(memo))
        _copy_training(self, copied)
        add_layers(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()
        names = [node.name for node in self.graph.nodes]
        layers = {name: call for name, call in layer_calls(self).items() if name}
        return _rebuild, (rebuild, arguments, names, layers)


def _after_what_comes_before(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the graph; what is to come before a call may find that the graph is to be another."""
        before = self.__dict__.get("_before_call")
        if before is not None:
            before(self, args, kwargs)
        return self.forward_of_graph(*args, **kwargs)

    return forward


def graph_module(model: nn.Module, graph: fx.Graph, name: str | None = None) -> Lowered:
    """Make a GraphModule out of the parts of ``model`` that ``graph`` uses, with their training flags.

    Args:
        model: owner of the modules and parameters that the graph names.
        graph: what to run; taken over.
        name: class name to print; that of ``model`` by default.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
        >>> graph_module(model, fx.symbolic_trace(model).graph).training
        False

    """
    for node in graph.nodes:
        # Neither an annotation that is a string nor a tracer of ours could be imported again.
        node.type = None
    _read_each_attribute_once(graph)
    graph._tracer_cls = GraphTracer
    result = Lowered(model, graph, class_name=name or type(model).__name__)
    _copy_training(model, result)
    return result


def _read_each_attribute_once(graph: fx.Graph) -> None:
    read: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and read.setdefault(node.target, node) is not node:
            node.replace_all_uses_with(read[node.target])
            graph.erase_node(node)


def _copy_training(source: nn.Module, target: nn.Module) -> None:
    """A GraphModule makes the modules between its root and its leaves anew, in training mode."""
    for path, module in target.named_modules():
        module.training = source.get_submodule(path).training


def _rebuild(
    rebuild: Callable[..., fx.GraphModule],
    arguments: tuple[Any, ...],
    names: list[str],
    layers: Layers | None = None,
) -> Lowered:
    loaded = rebuild(*arguments)
    graph = renamed(loaded.graph, names) if len(loaded.graph.nodes) == len(names) else loaded.graph
    result = graph_module(loaded, graph, type(loaded).__name__)
    for key, value in loaded.__dict__.items():
        result.__dict__.setdefault(key, value)
    result.meta = loaded.meta
    keep_layers(result, layers or {})
    return result


def renamed(graph: fx.Graph, names: list[str]) -> fx.Graph:
    """Return a copy of a graph with other names of its nodes."""
    renamed = fx.Graph(tracer_cls=GraphTracer)
    nodes: dict[fx.Node, fx.Node] = {}
    for node, name in zip(graph.nodes, names, strict=True):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), nodes.__getitem__)
        nodes[node] = renamed.create_node(node.op, node.target, args, kwargs, name)
    return renamed
