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

# In the meta of a graph: what the graph has become, if it has.
_CODE = "code"


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

    def become(self, module: nn.Module) -> None:
        """Call a module with all that is given, in place of the graph; its parts keep their names.

        It is a part itself, by a name that nothing else has; a state dict holds each tensor once.

        Example:
            >>> import torch
            >>> traced = nn.Sequential(nn.Tanh())
            >>> model = graph_module(traced, fx.symbolic_trace(traced).graph)
            >>> model.become(nn.Sequential(nn.Linear(1, 1)))
            >>> model(torch.ones(1)).shape, list(model.state_dict())
            (torch.Size([1]), ['0.weight', '0.bias'])

        """
        kinds = inspect.signature(module.forward).parameters
        graph = fx.Graph(tracer_cls=GraphTracer)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                given = graph.node_copy(node, lambda each: each)
                # A module that takes anything, as Keras' do, knows no argument by its name.
                kind = getattr(kinds.get(str(node.target)), "kind", None)
                if kind is inspect.Parameter.KEYWORD_ONLY:
                    kwargs[str(node.target)] = given
                else:
                    args.append(given)
        name = "code"
        while hasattr(self, name) or hasattr(module, name):
            name = f"{name}_"
        # Their places were in the other graph; in the code they are modules.
        keep_layers(self, {})
        self._modules.clear()
        self.add_module(name, module)
        graph.output(graph.call_module(name, tuple(args), kwargs))
        self.graph = graph
        self.meta[_CODE] = name
        self.show_code()

    def show_code(self) -> None:
        """Have the parts of what this graph has become as its own, beside that."""
        name = self.meta.get(_CODE)
        if name is None:
            return
        code: nn.Module = self._modules[name] or self
        self._modules = {**code._modules, name: code}
        for held in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            # The same, so that what is moved is moved in both.
            object.__setattr__(self, held, getattr(code, held))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is kept of the model, each tensor by the name that it had."""
        result = super().state_dict(*args, **kwargs)
        if _CODE in self.meta:
            for key in self._keys_of_code(result, kwargs.get("prefix", "")):
                del result[key]
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        name = self.meta.get(_CODE)
        if name is not None:
            state_dict |= {
                f"{prefix}{name}.{key.removeprefix(prefix)}": value
                for key, value in state_dict.items()
                if key.startswith(prefix)
            }
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _keys_of_code(self, state: Any, prefix: str) -> list[str]:
        return [key for key in state if key.startswith(f"{prefix}{self.meta[_CODE]}.")]

    def __deepcopy__(self, memo: dict[int, Any]) -> Lowered:
        copied = cast("Lowered", super().__deepcopy__(memo))
        copied.show_code()
        _copy_training(self, copied)
        add_layers(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()
        names = [node.name for node in self.graph.nodes]
        layers = {name: call for name, call in layer_calls(self).items() if name}
        return _rebuild, (rebuild, arguments, names, layers, self.meta.get(_CODE))


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
    code: str | None = None,
) -> Lowered:
    loaded = rebuild(*arguments)
    graph = renamed(loaded.graph, names) if len(loaded.graph.nodes) == len(names) else loaded.graph
    result = graph_module(loaded, graph, type(loaded).__name__)
    for key, value in loaded.__dict__.items():
        result.__dict__.setdefault(key, value)
    result.meta = loaded.meta | ({} if code is None else {_CODE: code})
    result.show_code()
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
