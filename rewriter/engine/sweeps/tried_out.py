"""What calls of a cell's graph do to numbers, found by trying them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

# Points at which a call is tried out, and how far a sum of some numbers of size 1 may be off.
_POINTS = 16
_ROUNDING = 1e-12
# What a call raises that does not fit what it is tried out with.
_REFUSALS = RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError


class NotElementwiseError(Exception):
    """An element of a cell's new state may depend on others of the old one than its own."""


def taken_times(node: fx.Node, varies: Callable[[fx.Node], bool]) -> dict[fx.Node, float]:
    """Return the number by which a pointwise call takes each operand that varies.

    Args:
        node: what is called.
        varies: whether an operand does; the others are numbers of which nothing is known.

    Raises:
        NotElementwiseError: if there is no such number, the same wherever the call is tried out.

    Example:
        >>> graph = fx.Graph()
        >>> x, y = graph.placeholder("x"), graph.placeholder("y")
        >>> taken_times(graph.call_function(torch.sub, (x, y), {"alpha": 0.5}), lambda _: True)
        {x: 1.0, y: -0.5}

    """
    operands = node.all_input_nodes
    moving = [each for each in operands if varies(each)]

    def value(at: Mapping[fx.Node, Tensor]) -> Tensor:
        result = run(node, at)
        if not isinstance(result, Tensor) or result.dtype != torch.float64:
            raise NotElementwiseError(f"{node.target} makes something else of numbers")
        return result

    def of_ones(*ones: fx.Node) -> float:
        # Between zero and one a difference has all its digits.
        return float(value({each: _number(each in ones) for each in operands}))

    taken = {each: of_ones(each) - of_ones() for each in moving}
    draw = torch.Generator().manual_seed(0)
    begin, end = ({each: 3 * random(_POINTS, draw) for each in operands} for _ in range(2))
    for moved in (*([each] for each in moving), moving):
        at = begin | {each: end[each] for each in moved}
        expected = sum((taken[each] * (end[each] - begin[each]) for each in moved), _number(0))
        size = 1 + expected.abs().max() + value(begin).abs().max()
        if not torch.allclose(value(at) - value(begin), expected, rtol=0, atol=_ROUNDING * float(size)):
            raise NotElementwiseError(f"{node.target} takes what varies times numbers that vary")
    return taken


def constant(model: fx.GraphModule, node: fx.Node) -> Any:
    """Return what is made of parameters alone, as they are now."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return cast("Tensor", getattr(model.get_submodule(owner), name)).detach()
    if node.op not in ("call_function", "call_method"):
        raise NotElementwiseError(f"{node} is no parameter")
    return run(node, {each: constant(model, each) for each in node.all_input_nodes})


def scaled_by(
    node: fx.Node,
    varies: Callable[[fx.Node], bool],
    fixed: Callable[[fx.Node], Any],
    width: int,
) -> dict[fx.Node, Tensor]:
    """Return the numbers, (H,), by which a pointwise call takes each operand that varies.

    Args:
        node: what is called.
        varies: whether an operand does.
        fixed: returns the value of one that does not.
        width: features of the state.

    Raises:
        NotElementwiseError: if there are none, the same wherever the call is tried out.

    """
    held = {each: fixed(each) for each in node.all_input_nodes if not varies(each)}
    moving = [each for each in node.all_input_nodes if varies(each)]
    like = next((each for each in held.values() if isinstance(each, Tensor)), _number(0))

    def value(at: Mapping[fx.Node, Tensor]) -> Tensor:
        result = run(node, held | dict(at))
        if not isinstance(result, Tensor) or result.shape != (_POINTS, width):
            raise NotElementwiseError(f"{node.target} makes something else of numbers")
        return result

    zeros, ones = like.new_zeros(_POINTS, width), like.new_ones(_POINTS, width)
    nothing = dict.fromkeys(moving, zeros)
    taken = {each: (value(nothing | {each: ones}) - value(nothing))[0] for each in moving}
    draw = torch.Generator().manual_seed(0)
    begin, end = (
        {each: 3 * random(_POINTS * width, draw).view(_POINTS, width).to(like) for each in moving}
        for _ in range(2)
    )
    expected = sum((taken[each] * (end[each] - begin[each]) for each in moving), zeros)
    size = 1 + expected.abs().max() + value(begin).abs().max()
    rounding = _ROUNDING if like.dtype == torch.float64 else 1e-5
    if not torch.allclose(value(end) - value(begin), expected, rtol=0, atol=rounding * float(size)):
        raise NotElementwiseError(f"{node.target} takes what varies times numbers that vary")
    return taken


def run(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Make a call with values.

    Raises:
        NotElementwiseError: if it does not take them.

    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    try:
        if callable(node.target):
            return node.target(*args, **kwargs)
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    except _REFUSALS as error:
        raise NotElementwiseError(f"{node.target} is not for any size or number: {error}") from error


def _number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64, device="cpu")


def random(count: int, draw: torch.Generator) -> Tensor:
    """Return random numbers of a generator that is ours."""
    return torch.randn(count, dtype=torch.float64, device="cpu", generator=draw)
