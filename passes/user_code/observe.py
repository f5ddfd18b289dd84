"""Run a model and see each call that it makes, also where torch.fx cannot look."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from passes.leaves import Atom, Layout
from passes.operations.catalogue import operation_of
from passes.operations.names import name_of_call
from passes.operations.operation import Kind
from passes.user_code.hooks import applied_by, set_forward
from passes.user_code.source import user_line
from passes.user_code.structure import tensors_in
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Scripted, Twin, wrap_scripted


@dataclass(frozen=True, eq=False)
class Call:
    """One call that a model makes.

    Args:
        name: of the node, where the call is one of a graph, else the qualified name of the module that
            is called, or in whose code the call stands.
        operation: what is called: a class of modules, a function, a method, a ``torch.autograd.Function``.
        source: file and line in the user's code, ``""`` if there is none.
        function: the module, the function, or the class of the ``torch.autograd.Function``.
        where: qualified name of the innermost module that is running.

    """

    name: str
    operation: str
    source: str
    function: Any
    where: str


class Observer(TorchFunctionMode):
    """Is asked to make each call of a model that :func:`observe` runs.

    Example:
        >>> class Printer(Observer):
        ...     def made(self, call, run, args, kwargs):
        ...         print(call.name, call.operation)
        ...         return run(*args, **kwargs)
        >>> _ = observe(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), Printer(), (torch.ones(1),))
        0 Linear
        1 Tanh

    """

    def __init__(self) -> None:
        super().__init__()
        self._inside: list[str] = []
        self.node: fx.Node | None = None
        self._quiet = False

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make one call, whose calls in turn are not shown, and return what it returns."""
        return run(*args, **kwargs)

    def is_whole(self, module: nn.Module) -> bool:
        """Whether a module is one call: one without children is, unless it is the user's."""
        own = type(module).__module__.startswith("torch.nn.") or isinstance(module, Atom | Layout)
        return own and not module._modules

    def called(self, module: nn.Module) -> str:
        """Return what a module is called that is one call."""
        return type(module).__name__

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Show a call of a function or method of torch's."""
        kwargs = kwargs or {}
        if self._quiet or _only_looks(func):
            return func(*args, **kwargs)
        return self.shown(func, name_of_call(func), func, args, kwargs)

    def shown(
        self,
        function: Any,
        operation: str,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
    ) -> Any:
        """Hand a call to :meth:`made`."""
        where = self._inside[-1] if self._inside else ""
        source = user_line()
        if self.node is not None and not self._inside:
            source = source or self.node.meta.get("source", "")
            name = name or self.node.name
        self._quiet = True
        try:
            call = Call(where if name is None else name, operation, source, function, where)
            return self.made(call, run, args, kwargs)
        finally:
            self._quiet = False

    def applied(self, function: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Show that a ``torch.autograd.Function`` is applied."""
        if self._quiet:
            return plain(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self.shown(function, function.__name__, plain, args, kwargs)

    def forward_of(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Return what is to run as the forward of a module of the copy that is observed."""
        return partial(self.enter, module.forward, name, module)

    def enter(
        self, plain: Callable[..., Any], name: str, module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        """Note that a module runs, or show its call if it is one."""
        if self._quiet:
            return plain(*args, **kwargs)
        if isinstance(module, Scripted):
            return self.shown(module, f"scripted {module.original_name}", plain, args, kwargs, name)
        if self.is_whole(module):
            return self.shown(module, self.called(module), plain, args, kwargs, name)
        self._inside.append(name)
        try:
            return plain(*args, **kwargs)
        finally:
            self._inside.pop()


def observe(
    model: nn.Module, observer: Observer, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """Run a private copy of a model, evaluated, while ``observer`` is asked to make its calls."""
    copy = Twin(model).model.eval()
    wrap_scripted(copy)
    for name, module in copy.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or (isinstance(copy, fx.GraphModule) and not name):
            continue
        set_forward(module, observer.forward_of(name, module))
    kwargs = kwargs or {}
    with unnoticed(model), applied_by(observer.applied), observer:
        if not isinstance(copy, fx.GraphModule):
            return copy(*args, **kwargs)
        return _Observed(copy, observer).run_with(*args, **kwargs)


class ModuleCall(NamedTuple):
    """One call of a module: its qualified name, and the tensors that it took and gave."""

    name: str
    taken: list[Tensor]
    given: list[Tensor]


def module_calls(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[Any, list[ModuleCall]]:
    """Run a private copy of a model, without gradients, and note the calls of its modules as they end.

    Example:
        >>> _, calls = module_calls(nn.Sequential(nn.Linear(1, 2), nn.Tanh()), (torch.ones(3, 1),))
        >>> [(call.name, tuple(call.given[0].shape)) for call in calls]
        [('0', (3, 2)), ('1', (3, 2)), ('', (3, 2))]

    """
    copy, calls = Twin(model).model, list[ModuleCall]()
    for name, module in copy.named_modules():

        def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            # Code may write to them afterwards.
            taken, given = ([each.clone() for each in tensors_in(part)] for part in ((args, kwargs), output))
            calls.append(ModuleCall(name, taken, given))

        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(note, with_kwargs=True)
    with unnoticed(model), torch.inference_mode(False), torch.no_grad():
        return copy(*args, **(kwargs or {})), calls


class ByNode(fx.Interpreter):
    """Runs a graph as its forward does, also one that takes ``*more`` and ``**options``.

    Example:
        >>> def forward(x, *more, **options):
        ...     return x + more[0] + options["y"]
        >>> graph = fx.Tracer().trace(forward)
        >>> ByNode(fx.GraphModule({}, graph)).run_with(1, 2, y=3)
        6

    """

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        # Errors say what the model's code would say.
        self.extra_traceback = False

    def run_with(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the graph returns."""
        bound = inspect.signature(self.module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        # One value for each placeholder, where torch would take what is left for one with a star.
        return self.run(*bound.arguments.values())

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the value of an argument."""
        return super().placeholder(str(target).lstrip("*"), args, kwargs)


class _Observed(ByNode):
    """A run that tells which node it is at."""

    def __init__(self, model: fx.GraphModule, observer: Observer) -> None:
        super().__init__(model)
        self.observer = observer

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        self.observer.node = n
        return super().run_node(n)


def _only_looks(function: Any) -> bool:
    """Whether a function says something about the type or shape of a tensor only."""
    operation = operation_of(function)
    return operation is not None and operation.kind is Kind.SHAPE
