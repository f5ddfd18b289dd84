"""What torch.export assumed of the sizes of inputs: symbols, and the conditions that the code asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from passes.user_code.source import TORCH, is_users

# Sizes above are not tried, only stated.
_LARGEST = 2**24


@dataclass(frozen=True)
class Condition:
    """What must hold of the sizes for the graph to be what the model computes.

    Args:
        holds: a boolean of sympy's over the symbols of the axes.
        line: of the user's code that asked, ``""`` if torch's own did.

    """

    holds: Any
    line: str

    def is_broken(self, sizes: Mapping[Any, int]) -> bool:
        """Whether it does not hold at some sizes, by symbol."""
        try:
            value = self.holds.xreplace({symbol: _integer(size) for symbol, size in sizes.items()})
        except ZeroDivisionError:  # a size divided by one that is 0 here
            return True
        return bool(value == False)  # noqa: E712  # sympy's false; what it cannot decide is neither

    def fixes(self, size: int) -> bool:
        """Whether it is an equation that leaves an axis one size."""
        symbols = self.holds.free_symbols
        if self.holds.func.__name__ != "Equality" or len(symbols) != 1:
            return False
        (symbol,) = symbols
        return not self.is_broken({symbol: size}) and self.is_broken({symbol: size + 1})

    def first_broken(self, symbol: Any, sizes: Mapping[Any, int]) -> Iterator[int]:
        """Yield the smallest and the next larger size of an axis, beside its own, that break the condition.

        Args:
            symbol: of the axis.
            sizes: of the axes in the example, by symbol.

        """
        own = sizes[symbol]

        def broken(size: int) -> bool:
            return self.is_broken({**sizes, symbol: size})

        smaller = next((size for size in range(1, min(own, 64)) if broken(size)), None)
        if smaller is not None:
            yield smaller
        # A few in a row, for conditions like being even; then ever larger, for bounds.
        larger = next((size for size in range(own + 1, own + 9) if broken(size)), None)
        if larger is None:
            low, high = own + 8, 2 * own + 16
            while high < _LARGEST and not broken(high):
                low, high = high, 2 * high
            while high - low > 1 and broken(high):
                middle = (low + high) // 2
                low, high = (low, middle) if broken(middle) else (middle, high)
            larger = high if broken(high) else None
        if larger is not None:
            yield larger


@dataclass(frozen=True)
class Assumptions:
    """Symbols of the inputs' axes and conditions on them.

    Args:
        shapes: of each input: an int where the size is fixed, or an expression of sympy's.
        conditions: what was asked of the sizes.

    """

    shapes: tuple[tuple[Any, ...], ...]
    conditions: tuple[Condition, ...]

    def fixed_at(self, size: int) -> str:
        """Return the line of the user's that fixed an axis at ``size``, ``""`` if it is not known."""
        lines = [each.line for each in self.conditions if each.line and each.fixes(size)]
        return lines[0] if lines else ""


def assumptions_of(program: torch.export.ExportedProgram) -> Assumptions:
    """Read what an export assumed.

    Example:
        >>> free = {"input": {0: torch.export.Dim.AUTO}}
        >>> program = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),), dynamic_shapes=free)
        >>> assumptions_of(program).shapes[0][1]
        3

    """
    inputs = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [values[name] for name in inputs if isinstance(values.get(str(name)), torch.Tensor)]
    environments = {id(value.fake_mode.shape_env): value.fake_mode.shape_env for value in tensors}
    conditions = [each for environment in environments.values() for each in conditions_of(environment)]
    conditions += _squeezed(program.graph)
    return Assumptions(tuple(_shape(value) for value in tensors), tuple(conditions))


def conditions_of(environment: ShapeEnv) -> list[Condition]:
    """Return what was asked of the sizes, each once, with a line of the user's if one of them asked.

    Example:
        >>> conditions_of(ShapeEnv())
        []

    """
    conditions: dict[Any, Condition] = {}
    for guard in environment.guards:
        line = _line_of(guard.sloc)
        if guard.expr not in conditions or not conditions[guard.expr].line:
            conditions[guard.expr] = Condition(guard.expr, line)
    return list(conditions.values())


def _squeezed(graph: fx.Graph) -> list[Condition]:
    """Return that an axis is not 1 long, where one of any size is squeezed; torch takes that for granted."""
    import sympy

    found = []
    for node in kept_axes(graph):
        (source, axis, *_) = node.args
        size = source.meta["val"].shape[axis]  # type: ignore[union-attr]
        found.append(Condition(sympy.Ne(size.node.expr, 1), line_of_node(node)))
    return found


def kept_axes(graph: fx.Graph) -> list[fx.Node]:
    """Return the calls of ``squeeze`` that keep an axis, because it may have any size but 1.

    ONNX's Squeeze would take it away, or fail.
    """
    return [
        node
        for node in graph.nodes
        if node.target is torch.ops.aten.squeeze.dim
        and isinstance(node.args[0].meta["val"].shape[node.args[1]], torch.SymInt)
    ]


def line_of_node(node: fx.Node) -> str:
    """Return the innermost line of the user's that called what a node stands for, ``""`` if none is noted."""
    noted = re.findall(r'File "(.+)", line (\d+), in', node.stack_trace or "")
    return next((f"{os.path.basename(name)}:{at}" for name, at in reversed(noted) if is_users(name)), "")


def fixed_axes(assumptions: Assumptions, free: Sequence[Mapping[int, Any]]) -> list[tuple[int, int]]:
    """Return the axes, as input and place, that should be free and have one size only."""
    return [
        (k, place)
        for k, (shape, places) in enumerate(zip(assumptions.shapes, free, strict=True))
        for place in places
        if isinstance(shape[place], int)
    ]


def lines_that_fix(assumptions: Assumptions, free: Sequence[Mapping[int, Any]]) -> list[str]:
    """Return, for each axis that should be free and is fixed, the line of the user's that did it."""
    return [assumptions.fixed_at(assumptions.shapes[k][place]) for k, place in fixed_axes(assumptions, free)]


def _shape(value: torch.Tensor) -> tuple[Any, ...]:
    found = []
    for size in value.shape:
        expression = getattr(getattr(size, "node", None), "expr", size)
        found.append(int(expression) if getattr(expression, "is_number", True) else expression)
    return tuple(found)


def _integer(size: int) -> Any:
    import sympy

    return sympy.Integer(size)


def _line_of(place: Any) -> str:
    """Return file and line of the user's, as torch noted them at a condition."""
    frame = getattr(place, "framework_loc", None)
    if frame is not None and not frame.filename.startswith(TORCH):
        # Else it is a condition of this package's own.
        return f"{os.path.basename(frame.filename)}:{frame.lineno}" if is_users(frame.filename) else ""
    noted = re.search(r"# (.*/)?([^/]+\.py:\d+) in", str(getattr(place, "maybe_user_loc", None) or ""))
    own = noted is not None and (noted[1] or "").startswith(("passes/", "rewriter/"))
    return "" if noted is None or own else noted[2]
