"""Rules for functions of two numbers: the Shapley value of a game with two players, element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from passes.operations.elementwise.sigmoid_tanh_relu import Operands, Rule
from passes.operations.maxima.rule import maximum_multipliers
from passes.operations.pairwise.atom import Pairwise

Function = Callable[[Tensor, Tensor], Tensor]


def corner_multipliers(function: Function, x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split any function of two numbers: the mean of an operand's two chords, one per value of the other.

    That is what each player adds, averaged over both orders (Shapley 1953). Where an operand hardly
    differs, its chords are lost in rounding, and its derivatives stand for them.

    Example:
        >>> one, two, three = torch.ones(1, 1), torch.ones(1, 1) + 1, torch.ones(1, 1) + 2
        >>> corner_multipliers(torch.mul, (three, two), (one, two), 3 * two, two)
        (tensor([[2.]]), tensor([[2.]]))

    """
    (a, b), (a0, b0) = x, x0
    with_a0, with_b0 = function(a0, b), function(a, b0)
    rise_a = (y - with_a0 + with_b0 - y0) / 2
    rise_b = (y - with_b0 + with_a0 - y0) / 2
    return (
        _slope(rise_a, a, a0, lambda side: _mean_derivative(function, side, b, b0)),
        _slope(rise_b, b, b0, lambda side: _mean_derivative(lambda t, s: function(s, t), side, a, a0)),
    )


def _slope(rise: Tensor, x: Tensor, x0: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    delta = x - x0
    # At this distance the two derivatives' mean is as close to the chord as rounding lets the quotient be.
    close = delta.abs() <= torch.finfo(delta.dtype).eps ** (1 / 3) * torch.maximum(x.abs(), x0.abs())
    slope = rise / torch.where(close, 1, delta)
    if bool(close.any()):
        slope = torch.where(close, (derivative(x) + derivative(x0)) / 2, slope)
    return slope


def _mean_derivative(function: Function, x: Tensor, other: Tensor, other0: Tensor) -> Tensor:
    """Return the derivative in ``x``, averaged over the two values of the other operand."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        total = (function(leaf, other.detach()) + function(leaf, other0.detach())).sum() / 2
        (derivative,) = torch.autograd.grad(total, leaf)
    # Where a function has none, as hypot at its origin, nothing hangs on it: the operand does not differ.
    return torch.where(torch.isfinite(derivative), derivative, 0)


def quotient_multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split ``a / b`` as the product of ``a`` and ``1 / b``, of which the latter is rescaled.

    Nothing is subtracted: ``1/b - 1/b0 = -(b - b0) / (b b0)``.

    Example:
        >>> one, two = torch.ones(1), torch.ones(1) + 1
        >>> quotient_multipliers((two, two), (two, one), one, two)
        (tensor([0.7500]), tensor([-1.]))

    """
    (a, b), (a0, b0) = x, x0
    return (1 / b + 1 / b0) / 2, -((a + a0) / 2 / b) / b0


def larger_multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split ``maximum(a, b)``, element by element.

    Example:
        >>> one, two, three = torch.ones(1), torch.ones(1) + 1, torch.ones(1) + 2
        >>> larger_multipliers((three, one), (0 * one, two), three, two)
        (tensor([0.5000]), tensor([0.5000]))

    """
    a, b = maximum_multipliers(torch.stack(x, -1), torch.stack(x0, -1)).unbind(-1)
    return a, b


def smaller_multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split ``minimum(a, b) = -maximum(-a, -b)``, element by element.

    Example:
        >>> one, two, three = torch.ones(1), torch.ones(1) + 1, torch.ones(1) + 2
        >>> smaller_multipliers((one, three), (one, two), one, one)
        (tensor([1.]), tensor([0.]))

    """
    (a, b), (a0, b0) = x, x0
    return larger_multipliers((-a, -b), (-a0, -b0), -y, -y0)


#: Closed forms by the name of the function.
CLOSED: Mapping[str, Rule] = {
    "div": quotient_multipliers,
    "maximum": larger_multipliers,
    "minimum": smaller_multipliers,
    "fmax": larger_multipliers,
    "fmin": smaller_multipliers,
}


def pairwise_rule_for(atom: Pairwise) -> Rule:
    """Return the rule of an atom."""
    if atom.function in CLOSED and not atom.options:
        return CLOSED[atom.function]
    return partial(corner_multipliers, atom.forward)
