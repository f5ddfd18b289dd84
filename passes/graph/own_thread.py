"""torch.fx's trace, with patches that only the thread which traces can see.

torch.fx replaces ``nn.Module.__call__`` and functions of the modules that it meets while it traces, for the
whole process: another thread that runs a model meanwhile calls the replacements. Here the same code of
torch's runs in a namespace in which patches ask for the thread, so that all others find what was there.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType
from typing import Any

import torch
from torch import fx
from torch.fx import _symbolic_trace


class Own:
    """What patches are to be seen by: the thread that makes it, until it is over."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def __bool__(self) -> bool:
        return self.thread == threading.get_ident()

    def over(self) -> None:
        """Let nobody see them any more, also where somebody else put a patch back."""
        self.thread = None

    def only(self, original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls the replacement in this thread, and the original in all others.

        Example:
            >>> which = Own().only(lambda: "original", lambda: "replacement")
            >>> found = [which()]
            >>> other = threading.Thread(target=lambda: found.append(which()))
            >>> other.start(), other.join(), found
            (None, None, ['replacement', 'original'])

        """

        @functools.wraps(replacement)
        def call(*args: Any, **kwargs: Any) -> Any:
            # What another thread compiles meanwhile is compiled without the patch.
            if torch.compiler.is_dynamo_compiling() or not self:
                return original(*args, **kwargs)
            return replacement(*args, **kwargs)

        return call


class ImportsUnpatched(MetaPathFinder):
    """Has what a thread first imports while it traces imported without patches.

    Libraries note torch's functions when they are imported; torch._dynamo would know a patch by their names.

    Args:
        own: whose imports.
        unpatched: takes the patches back for a time.

    Example:
        >>> from contextlib import nullcontext
        >>> with ImportsUnpatched(Own(), nullcontext):
        ...     import this_module_is_missing
        Traceback (most recent call last):
        ModuleNotFoundError: No module named 'this_module_is_missing'

    """

    def __init__(self, own: Own, unpatched: Callable[[], AbstractContextManager[None]]) -> None:
        self.own = own
        self.unpatched = unpatched

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find a module as it would be found, with another loader."""
        others = [each for each in sys.meta_path if each is not self] if self.own else []
        found = (each.find_spec(fullname, path, target) for each in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Unpatched(spec.loader, self)
        return spec

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)


class _Unpatched(Loader):
    def __init__(self, plain: Any, imports: ImportsUnpatched) -> None:
        self._plain = plain
        self._imports = imports

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._plain.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._plain
        own, imports = self._imports.own, self._imports
        # What it imports in turn needs nothing.
        imports.own = _OVER
        try:
            with imports.unpatched():
                self._plain.exec_module(module)
        finally:
            imports.own = own


_OVER = Own()
_OVER.over()


class _Patcher(_symbolic_trace._Patcher):
    """Makes torch.fx's patches for one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Own()

    def patch(
        self, frame_dict: dict[str, Any], name: str, new_fn: Callable[..., Any], deduplicate: bool = True
    ) -> None:
        original = frame_dict[name] if name in frame_dict else getattr(builtins, name)
        super().patch(frame_dict, name, self.own.only(original, new_fn), deduplicate)

    def patch_method(
        self, cls: type, name: str, new_fn: Callable[..., Any], deduplicate: bool = True
    ) -> None:
        super().patch_method(cls, name, self.own.only(getattr(cls, name), new_fn), deduplicate)


@contextmanager
def _new_patcher() -> Iterator[_Patcher]:
    patcher = _Patcher()
    try:
        yield patcher
    finally:
        patcher.own.over()
        while patcher.patches_made:
            patcher.patches_made.pop().revert()


class _Tracing(Own):
    """Stands for torch.fx's flag that says whether a trace is under way."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        self.before = before

    def __bool__(self) -> bool:
        return super().__bool__() or bool(self.before)


def trace_in_own_thread(tracer: fx.Tracer, *args: Any, **kwargs: Any) -> fx.Graph:
    """Do as ``fx.Tracer.trace``; other threads notice nothing.

    Example:
        >>> graph = trace_in_own_thread(fx.Tracer(), torch.nn.Sequential(torch.nn.Tanh()))
        >>> [node.op for node in graph.nodes]
        ['placeholder', 'call_module', 'output']

    """
    # torch.compile, once it was used, wraps it.
    plain = inspect.unwrap(fx.Tracer.trace)
    namespace = {**plain.__globals__, "_new_patcher": _new_patcher}
    trace = FunctionType(plain.__code__, namespace, plain.__name__, plain.__defaults__, plain.__closure__)
    flag: Any = _Tracing(_symbolic_trace._is_fx_tracing_flag)
    # torch asks for this one, where it compiles functions or takes nested tensors apart.
    _symbolic_trace._is_fx_tracing_flag = flag
    try:
        graph: fx.Graph = trace(tracer, *args, **kwargs)
    finally:
        flag.over()
        if _symbolic_trace._is_fx_tracing_flag is flag:
            _symbolic_trace._is_fx_tracing_flag = flag.before
    return graph
