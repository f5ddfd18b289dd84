"""What stands for a tensor while torch.fx traces: one that can be written to, as a tensor can."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx

from passes.graph.leaf_functions import leaf
from passes.graph.own_thread import ImportsUnpatched, Own
from passes.operations.catalogue import OPERATIONS
from passes.operations.operation import Kind
from passes.user_code.source import is_library, is_users, user_line


def _decides(frame: FrameType) -> bool:
    """Whether code that is neither ours nor torch's is running, which may go on by what it sees."""
    return not is_library(frame.f_code.co_filename)


def _recorded(operator_name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    target = getattr(operator, operator_name)

    def write(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return write


class WritableProxy(fx.Proxy):
    """A proxy that records ``x += y`` and ``x[i] = y``, of which torch.fx makes ``x + y`` and an error.

    Example:
        >>> graph = fx.Graph()
        >>> x = WritableProxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
        >>> x += 1
        >>> x.node.target is operator.iadd
        True

    """

    __iadd__ = _recorded("iadd")
    __iand__ = _recorded("iand")
    __ifloordiv__ = _recorded("ifloordiv")
    __ilshift__ = _recorded("ilshift")
    __imatmul__ = _recorded("imatmul")
    __imod__ = _recorded("imod")
    __imul__ = _recorded("imul")
    __ior__ = _recorded("ior")
    __ipow__ = _recorded("ipow")
    __irshift__ = _recorded("irshift")
    __isub__ = _recorded("isub")
    __itruediv__ = _recorded("itruediv")
    __ixor__ = _recorded("ixor")

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return WritableAttribute(self, k)

    def __hash__(self) -> int:
        number = self._fixed("number")
        if number is None:
            # A set or a dictionary would look for the proxy, and find nothing, whatever the value is.
            raise fx.proxy.TraceError("looks a traced value up in a set or a dictionary")
        return hash(number)

    def __index__(self) -> int:
        number = self._fixed("number")
        if number is None:
            raise TypeError(f"'{type(self).__name__}' object cannot be interpreted as an integer")
        return number

    def __len__(self) -> int:
        length = self._fixed("length")
        return super().__len__() if length is None else length

    def _fixed(self, what: str) -> int | None:
        """Return what examples tell of a number, or a length, if there are any."""
        fixed = getattr(self.tracer, "fixed", None)
        return None if fixed is None else fixed(self, what)

    def __str__(self) -> str:
        return self._shown(fx.Proxy.__repr__(self))

    def __repr__(self) -> str:
        return self._shown(fx.Proxy.__repr__(self))

    def __format__(self, specification: str) -> str:
        return self._shown(fx.Proxy.__repr__(self))

    def _shown(self, text: str) -> str:
        if _decides(sys._getframe(2)):
            raise fx.proxy.TraceError("makes a text of a traced value")
        return text

    @property  # type: ignore[misc]  # torch, isinstance and dispatch by type ask for it
    def __class__(self) -> type:
        asking = sys._getframe(1)
        # The audit reads the user's own code, from where torch's functions in C ask, too.
        if _decides(asking) and not is_users(asking.f_code.co_filename):
            getattr(self.tracer, "decided", str)("asks for the class of a traced value")
        return type(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})
        caller = sys._getframe(1)
        recorded: set[tuple[CodeType, int]] = getattr(self.tracer, "recorded", set())
        recorded.add((caller.f_code, caller.f_lasti))


class WritableAttribute(fx.proxy.Attribute, WritableProxy):
    """An attribute of a proxy, such as ``x.T``, or a method.

    Its node is made where it is first used, and says where it was read.
    """

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        super().__init__(root, attr)
        self.source = user_line()

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node of the attribute."""
        fresh = self._node is None
        node = super().node
        if fresh and self.source:
            node.meta["source"] = self.source
        return node


#: What makes a tensor of sizes, but takes no tensor by which torch could tell that it is traced.
FACTORIES: Mapping[str, Callable[..., Any]] = {
    each.name: leaf(each.function, __name__)
    for each in OPERATIONS
    if each.kind is Kind.BLANK and not hasattr(torch.Tensor, each.name) and "like" not in each.name
}


def __getattr__(name: str) -> Any:
    """Find what the code of a pickled graph calls."""
    if name in FACTORIES:
        return FACTORIES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def factories_recorded() -> Iterator[None]:
    """Record ``torch.zeros(x.shape[0], 2)`` and its kind, which torch.fx makes an error.

    Example:
        >>> class Zeros(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.zeros(x.shape[0], 2)
        >>> with factories_recorded():
        ...     traced = fx.symbolic_trace(Zeros())
        >>> traced(torch.ones(1)), torch.zeros(1)
        (tensor([[0., 0.]]), tensor([0.]))

    """
    originals = {name: getattr(torch, name) for name in FACTORIES}
    own = Own()
    patches = {name: own.only(originals[name], recorded) for name, recorded in FACTORIES.items()}
    try:
        _set(patches)
        with ImportsUnpatched(own, partial(_as_before, originals, patches)):
            yield
    finally:
        own.over()
        _set(originals)


def _set(functions: Mapping[str, Callable[..., Any]]) -> None:
    for name, function in functions.items():
        setattr(torch, name, function)


@contextmanager
def _as_before(originals: Mapping[str, Any], patches: Mapping[str, Any]) -> Iterator[None]:
    _set(originals)
    try:
        yield
    finally:
        _set(patches)
