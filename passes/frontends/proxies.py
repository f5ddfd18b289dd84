"""What stands for a tensor while torch.fx traces: one that can be written to, as a tensor can."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import fx

from passes.graph.leaf_functions import leaf

_IN_PLACE = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
)
# They take sizes, but no tensor by which torch could tell that it is traced.
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")


class WritableProxy(fx.Proxy):
    """A proxy that records ``x += y`` and ``x[i] = y``, of which torch.fx makes ``x + y`` and an error.

    Example:
        >>> graph = fx.Graph()
        >>> x = WritableProxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
        >>> x += 1
        >>> x.node.target is operator.iadd
        True

    """

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return WritableAttribute(self, k)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})
        caller = sys._getframe(1)
        recorded: set[tuple[CodeType, int]] = getattr(self.tracer, "recorded", set())
        recorded.add((caller.f_code, caller.f_lasti))


class WritableAttribute(fx.proxy.Attribute, WritableProxy):
    """An attribute of a proxy, such as ``x.T``, or a method."""


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    target = getattr(operator, name)

    def write(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return write


for _name in _IN_PLACE:
    setattr(WritableProxy, f"__{_name}__", _in_place(_name))


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
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name in originals:
            setattr(torch, name, globals()[name])
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


for _name in _FACTORIES:
    globals()[_name] = leaf(getattr(torch, _name), __name__)
