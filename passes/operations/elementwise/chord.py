"""Rules for functions of each element: the slope of the chord, in closed form or from the derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.elementwise.slopes import Slope, mean_of, quotient


def chord_multiplier(
    function: Callable[..., Tensor], x: Operands, x0: Operands, y: Tensor, y0: Tensor
) -> Operands:
    """Rescale any elementwise function: the slope of its chord.

    The difference of two values loses digits where they are close. So the slope is the mean of the
    derivative between the two ends wherever that explains the difference of the values to rounding:
    where the chord passes a kink or a step, or is too long, it does not. At equal ends it is the
    derivative.

    Args:
        function: of the input and of operands that are the same for all inputs.
        x: those operands at the sample, (n or 1, *shape).
        x0: at the reference.
        y: what the function makes of ``x``.
        y0: of ``x0``.

    Example:
        >>> one = torch.ones(1, 1)
        >>> (slope,) = chord_multiplier(torch.square, (3 * one,), (one,), 9 * one, one)
        >>> round(slope.item(), 5)
        4.0

    """
    delta = x[0] - x0[0]
    chord = quotient(x[0], x0[0], y, y0)
    mean = mean_of(lambda point: _derivative(function, point, x[1:]), x[0], x0[0])
    rounding = 2 * torch.finfo(y.dtype).eps * torch.maximum(y.abs(), y0.abs())
    explains = (y - y0 - mean * delta).abs() <= rounding
    slope = torch.where(explains | (delta == 0), mean, chord)
    return slope, *(torch.zeros_like(slope) for _ in x[1:])


def _derivative(function: Callable[..., Tensor], x: Tensor, fixed: Operands) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        constants = (each.detach().expand(x.shape) for each in fixed)
        value = function(leaf, *constants)
        if not value.requires_grad:
            # A step, for which torch has no derivative.
            return torch.zeros_like(x)
        (derivative,) = torch.autograd.grad(value.sum(), leaf)
    return derivative


def by_slope(slope: Slope, x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale by a slope in closed form.

    Example:
        >>> one = torch.ones(1, 1)
        >>> by_slope(lambda x, x0, y, y0: x + x0, (3 * one,), (one,), 9 * one, one)
        (tensor([[4.]]),)

    """
    return (slope(x[0], x0[0], y, y0),)
