"""The front-ends: what becomes one graph, and what stays the user's code with islands in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal

from torch import fx, nn
from torch.jit import ScriptModule

from passes.errors import PassError
from passes.frontends.example_sizes import Example, ExampleSizes, Sizes, check_fixed, check_none
from passes.frontends.exported import is_graph_of_program
from passes.frontends.proxies import WritableProxy, factories_recorded
from passes.graph.graph_module import graph_module
from passes.graph.layers import layer_tap, proxies_in
from passes.graph.tracer import GraphTracer
from passes.leaves import Atom, Layout
from passes.recurrent.recurrence import Recurrence
from passes.stand_in import StandIn
from passes.user_code.audit import innermost, watch
from passes.user_code.hooks import has_hooks
from passes.user_code.randomness import TorchDraws, same_random_state, state_outside_torch
from passes.user_code.source import user_line, why_not_followed
from passes.user_code.state import state_of
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin

_DRAWS = "draws random numbers of a fixed shape"
# Python's and numpy's generators belong to all threads.
_ATTEMPTS = 3


class LoweringTracer(GraphTracer):
    """Trace down to torch's own modules, atoms, layout modules and recurrences.

    Nodes that come from inside a rewritten layer are named after their place in the model.

    Args:
        opaque: modules to keep whole although torch.fx could look inside.
        layers: names of the modules whose calls are to be found again in the graph.
        sizes: what the code may go on by, which the graph checks again.

    """

    def __init__(
        self,
        opaque: Iterable[nn.Module] = (),
        layers: Iterable[str] = (),
        sizes: ExampleSizes | None = None,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.opaque = {id(module) for module in opaque}
        self.layers = set(layers)
        self.called: set[tuple[str, str]] = set()
        self.inside: list[str] = []
        # What a graph would fix, by the module that does it.
        self.found: dict[str, str] = {}
        # Where in the code an item was assigned that is a node.
        self.recorded: set[tuple[CodeType, int]] = set()
        self.parameters: dict[int, tuple[str, nn.Parameter]] = {}
        self.draws = TorchDraws()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the value of ``node``."""
        return WritableProxy(node, self)

    def fixed(self, proxy: fx.Proxy, what: Literal["number", "length"]) -> int | None:
        """Return a number, or a length, that examples tell, and have the graph check it."""
        if self.sizes is None:
            return None
        number: int | None = getattr(self.sizes, what)(proxy.node, self.root)
        if number is not None:
            self.create_proxy("call_function", check_fixed, (proxy, number, user_line()), {})
        return number

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide what hangs on sizes that examples tell."""
        number = self.fixed(obj, "number")
        return super().to_bool(obj) if number is None else bool(number)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go through as many parts as examples have."""
        length = self.fixed(obj, "length")
        if length is None:
            return super().iter(obj)
        return iter([operator.getitem(obj, k) for k in range(length)])

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        """Let what is None in the example be None, and have the graph check it."""
        function, found = super().create_args_for_root(*args, **kwargs)
        if self.sizes is not None:
            for k, each in enumerate(found):
                name = str(each.node.target) if isinstance(each, fx.Proxy) else "*"
                is_none = self.sizes.is_none(name)
                if is_none is not None:
                    self.create_proxy("call_function", check_none, (each, is_none, name), {})
                    found[k] = None if is_none else each
        return function, found

    def create_arg(self, a: Any) -> Any:
        """Take numbers of other kinds, ``np.sqrt(64)`` say, for plain ones, which the code can name."""
        if isinstance(a, float):
            return float(a)
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Look a parameter up; torch.fx goes through all of the model's, each time that one is read."""
        if not isinstance(attr_val, nn.Parameter):
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if not self.parameters:
            self.parameters = {id(each): (name, each) for name, each in self.root.named_parameters()}
        name, _ = self.parameters.get(id(attr_val), (None, None))
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` becomes one node."""
        if isinstance(m, Atom | Layout | Recurrence) or id(m) in self.opaque or has_hooks(m):
            return True
        return not isinstance(m, StandIn) and _is_torch_layer(type(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Keep the path of the modules being traced, innermost last, also when the trace fails."""
        path = self.path_of_module(m)
        self.tap(path, "input", (args, kwargs))
        result = self.call_inside(m, path, forward, args, kwargs)
        self.tap(path, "output", result)
        return result

    def tap(self, path: str, side: str, values: Any) -> None:
        """Note in the graph what a layer takes or gives, at its first call; that there is a second, once."""
        if path not in self.layers:
            return
        for mark in (side, "again"):
            if (path, mark) not in self.called and (mark == side or side == "input"):
                self.called.add((path, mark))
                self.create_proxy("call_function", layer_tap, (proxies_in(values), path, mark), {})
                return

    def call_inside(
        self,
        m: nn.Module,
        path: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a leaf, or run another module."""
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self.inside.append(path)
        before = self.drawn()
        result = super().call_module(m, forward, args, kwargs)
        if not same_random_state(before, self.drawn()):
            self.found.setdefault(path, _DRAWS)
        self.inside.pop()
        return result

    def drawn(self) -> dict[str, Any]:
        """Return what tells whether random numbers were drawn: by this thread, where that can be told."""
        return state_outside_torch() | {"torch": self.draws.count}

    def decided(self, what: str) -> None:
        """Note that the running code went on by something that a graph would fix."""
        self.found.setdefault(self.where(), what)

    def running(self) -> tuple[str, ...]:
        """The qualified names of the modules whose forwards are running, innermost last."""
        return tuple(self.inside)

    def where(self) -> str:
        """The qualified name of the module whose forward is running."""
        return self.inside[-1] if self.inside else ""

    def node_name(self, kind: str, target: Any) -> str | None:
        """Name a node inside a module after the module and the operation."""
        if not self.inside or kind not in ("call_function", "call_method"):
            return None
        operation = target if isinstance(target, str) else getattr(target, "__name__", "call")
        return f"{self.where().replace('.', '_')}_{operation}"

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Note where in the user's code a node comes from."""
        if kind == "get_attr" and "_tensor_constant" in str(target):
            self.found.setdefault(self.where(), "creates a tensor that a graph would fix")
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["source"] = user_line()
        return node


@dataclass(frozen=True)
class Traced:
    """What the front-ends made of a model.

    Args:
        model: a GraphModule, or the model as it came in where no graph was possible.
        islands: qualified name of each module that stays the user's code, with the reason.

    """

    model: nn.Module
    islands: dict[str, str] = field(default_factory=dict)


def trace_where_possible(
    model: nn.Module,
    code: str | None = None,
    layers: Iterable[str] = (),
    example: Example | None = None,
) -> Traced:
    """Turn ``model`` into a graph, keeping each submodule that torch.fx cannot follow as one node.

    If the model's own forward cannot be followed, the model is returned as it is: its parts stay
    what they are, because user code may read their attributes and call their other methods.

    Args:
        model: the model.
        code: why it is not to become a graph, whatever torch.fx makes of it.
        layers: names of the modules whose calls are to be found again in a graph, by taps in it.
        example: what hangs on its sizes alone, but for the rows, is written out for them, where it stands
            in the way.

    Example:
        >>> class Branching(nn.Module):
        ...     def forward(self, x):
        ...         return x if x.sum() > 0 else -x
        >>> traced = trace_where_possible(nn.Sequential(nn.Linear(2, 2), Branching()))
        >>> isinstance(traced.model, fx.GraphModule), list(traced.islands)
        (True, ['1'])

    """
    if is_graph_of_program(model):
        return Traced(model)
    islands = _calls_of_their_own(model)
    reason = code or _kept_whole(model) or islands.get("")
    if reason is not None:
        return Traced(model, {"": reason})
    found = _followed(model, islands, set(layers), None)
    sizes = example.sizes(model.forward) if found.islands and example is not None else None
    if sizes is not None:
        written_out = _followed(model, islands, set(layers), sizes)
        left = set(written_out.islands)
        if left < set(found.islands) or ("" in found.islands and "" not in left):
            return written_out
    return found


def _followed(model: nn.Module, islands: Mapping[str, str], layers: set[str], sizes: Sizes | None) -> Traced:
    islands = dict(islands)
    # A trace for each of the steps of a loop, each a module of its own, would take their square.
    expected: dict[str, str] = {}
    expecting = True
    while True:
        attempt = _traced(model, [*islands, *expected], layers, sizes)
        if expected and attempt.failed:
            # One may have failed before the next was found, so they are found one by one.
            expected, expecting = {}, False
            continue
        islands |= expected
        if attempt.graph is not None:
            return Traced(attempt.graph, islands)
        where = attempt.where
        # What was kept whole already and still stands in the way is written to by code around it.
        while where in islands and where:
            where = where.rpartition(".")[0]
        islands[where] = attempt.reason
        if where == "":
            return Traced(model, islands)
        expected = dict(attempt.then) if expecting else {}


@dataclass(frozen=True)
class _Attempt:
    """What came of one trace.

    Args:
        graph: None if something stands in the way.
        where: the module that does.
        reason: why.
        failed: whether the trace ended with an error.
        then: what the next traces will find, if the modules before are kept whole.

    """

    graph: fx.GraphModule | None
    where: str = ""
    reason: str = ""
    failed: bool = False
    then: tuple[tuple[str, str], ...] = ()


def _traced(
    original: nn.Module, opaque: Iterable[str], layers: Iterable[str], sizes: Sizes | None
) -> _Attempt:
    """Return what the first trace does, unless random numbers stood in its way that others may have drawn."""
    for _ in range(_ATTEMPTS - 1):
        found = _try_trace(original, opaque, layers, sizes)
        if found.reason != _DRAWS:
            return found
    return _try_trace(original, opaque, layers, sizes)


def _try_trace(
    original: nn.Module, opaque: Iterable[str], layers: Iterable[str], sizes: Sizes | None
) -> _Attempt:
    """Return a graph; or the module that stands in the way, and why."""
    twin = Twin(original)
    model = twin.model
    tracer = LoweringTracer((model.get_submodule(name) for name in opaque), layers, sizes and sizes())
    before_trace = state_of(model)
    before = tracer.drawn()
    with unnoticed(original) as outside:
        try:
            known = sizes is not None
            with watch(tracer.running, by_example=known) as ran, factories_recorded(), tracer.draws:
                graph = tracer.trace(model)
        except PassError:
            raise
        except Exception as error:
            return _Attempt(None, tracer.where(), why_not_followed(error), failed=True)
        drew = not same_random_state(before, tracer.drawn())
        written = outside.changed()
    of_code = ran.hazards(tracer.recorded)
    found = of_code | tracer.found
    if drew and _DRAWS not in found.values():
        found[""] = _DRAWS
    if written:
        found.setdefault("", f"writes to {', '.join(written)}, outside of the model")
    for tensor in twin.written():
        found.setdefault(tensor.rpartition(".")[0], f"writes to {tensor}")
    for place, value in state_of(model).items():
        if before_trace.get(place) != value:
            found.setdefault(place[0], f"stores values on {place[1]}")
    # What a part does counts against that part alone: the rest can still become a graph.
    if not found:
        return _Attempt(graph_module(original, graph))
    where = innermost(found)
    # Of what code does, each place is known; what else was found may be the deed of any.
    alone = found == of_code and not ran.modes
    then = [each for each in ran.one_by_one(tracer.recorded) if each[0] not in ("", where)] if alone else []
    return _Attempt(None, where, found[where], then=tuple(then))


def _is_torch_layer(cls: type[nn.Module]) -> bool:
    """Whether a class is, or derives from, one of torch's layers; containers are looked into."""
    return any(
        base.__module__.startswith(("torch.nn.", "torch.ao.nn."))
        and base.__module__ not in ("torch.nn.modules.module", "torch.nn.modules.container")
        for base in cls.__mro__
    )


def _kept_whole(model: nn.Module) -> str | None:
    """Say what a graph of ``model`` would lose although the trace succeeds."""
    if has_hooks(model):
        return "the model itself has hooks, which a graph would drop"
    if "forward" in model.__dict__:
        return "its forward was replaced on the instance"
    if _has_own_call(model):
        return f"{type(model).__name__} has a __call__ of its own"
    return None


def _has_own_call(module: nn.Module) -> bool:
    # Torch's own say that they cannot be called, or are graphs.
    return not type(module).__call__.__module__.startswith("torch.") and not isinstance(
        module, fx.GraphModule | ScriptModule
    )


def _calls_of_their_own(model: nn.Module) -> dict[str, str]:
    """Find the modules that hold one whose ``__call__`` does more than to call the forward.

    torch.fx sees the call inside of it, as a module that a graph would call again, with what is around it.
    """
    return {
        name.rpartition(".")[0]: f"{name}: {type(module).__name__} has a __call__ of its own"
        for name, module in model.named_modules()
        if name and _has_own_call(module)
    }
