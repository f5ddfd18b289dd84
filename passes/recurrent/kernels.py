"""Torch's own recurrent kernels, and the code that calls them."""

from __future__ import annotations

import dis
import functools
import os
from collections.abc import Iterator
from types import FunctionType

from torch import fx, nn

from passes.operations.catalogue import OPERATIONS
from passes.operations.operation import Kind

KERNELS = {each.name for each in OPERATIONS if each.kind is Kind.KERNEL}


@functools.cache
def fused_call(cls: type[nn.Module]) -> str | None:
    """Say which method of a class calls which recurrent kernel, or None.

    Example:
        >>> class Functional(nn.Module):
        ...     def forward(self, x, h, w):
        ...         return torch.gru_cell(x, h, w, w)
        >>> fused_call(Functional).partition(" (")[0]
        'Functional.forward calls torch.gru_cell'

    """
    for owner in cls.__mro__:
        if owner.__module__.startswith("torch."):
            continue
        for method in vars(owner).values():
            if not isinstance(method, FunctionType):
                continue
            code, previous = method.__code__, None
            for each in dis.get_instructions(code):
                if previous in ("torch", "_VF") and each.argval in KERNELS:
                    line = each.positions.lineno if each.positions else code.co_firstlineno
                    place = f"{os.path.basename(code.co_filename)}:{line}"
                    return f"{code.co_qualname} calls torch.{each.argval} ({place})"
                previous = each.argval
    return None


def fused_nodes(graph: fx.Graph) -> Iterator[str]:
    """Yield each recurrent kernel that a graph calls."""
    for node in graph.nodes:
        if node.op == "call_function":
            # torch.lstm is a builtin named lstm, torch.ops.aten.lstm prints as aten.lstm.
            names = {getattr(node.target, "__name__", ""), *str(node.target).split(".")}
            yield from sorted(names & KERNELS)
