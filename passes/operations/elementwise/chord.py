"""Rules for functions of each element: a closed form where one is known, else the slope of the chord."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from passes.operations.elementwise.atom import Elementwise
from passes.operations.elementwise.sigmoid_tanh_relu import Operands, Rule
from passes.operations.elementwise.slopes import CLOSED, Slope, mean_of, quotient


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
        # Pairs come with a dimension in front, which a module that counts dimensions does not expect.
        leaf = x.detach().flatten(0, 1).requires_grad_()
        constants = (each.detach().expand(x.shape).flatten(0, 1) for each in fixed)
        value = function(leaf, *constants)
        if not value.requires_grad:
            # A step, for which torch has no derivative.
            return torch.zeros_like(x)
        (derivative,) = torch.autograd.grad(value.sum(), leaf)
    return derivative.view(x.shape)


def rule_for(atom: Elementwise) -> Rule:
    """Return the rule of an atom.

    Example:
        >>> one = torch.ones(1, 1)
        >>> rule_for(Elementwise("pow", exponent=3))((2 * one,), (one,), 8 * one, one)
        (tensor([[7.]]),)

    """
    if atom.function == "abs":
        return partial(_magnitude, atom)
    if atom.function in CLOSED:
        return partial(_closed, partial(CLOSED[atom.function], **atom.options))
    return partial(chord_multiplier, atom.forward)


def _closed(slope: Slope, x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    return (slope(x[0], x0[0], y, y0),)


def _magnitude(atom: Elementwise, x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale ``|x|``; of complex numbers by ``|x|^2 - |x0|^2 = Re(conj(x + x0) (x - x0))``."""
    if not x[0].is_complex():
        return chord_multiplier(atom.forward, x, x0, y, y0)
    both = y + y0
    return ((x[0] + x0[0]).conj() / torch.where(both == 0, 1, both),)
