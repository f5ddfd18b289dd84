"""Rules for functions of two numbers: the Shapley value of a game with two players, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from passes.operations.contract import Multipliers, Operands
from passes.operations.elementwise.chord import chord_multiplier
from passes.operations.elementwise.slopes import log_of_sum
from passes.operations.maxima.rule import maximum_multipliers
from passes.operations.operation import function_named

Function = Callable[[Tensor, Tensor], Tensor]
#: Takes an operand at sample and reference, the other one, and what the function makes of both.
Slope = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
Slopes = tuple[Slope, Slope]


def corner_multipliers(
    function: Function, slopes: Slopes | None, x: Operands, x0: Operands, y: Tensor, y0: Tensor
) -> Operands:
    """Split any function of two numbers: the mean of an operand's two chords, one per value of the other.

    That is what each player adds, averaged over both orders (Shapley 1953).

    Args:
        function: of two tensors.
        slopes: of the chords of each operand, if they have a closed form.
        x: the operands at the sample, (n or 1, *shape).
        x0: at the reference.
        y: what the function makes of ``x``.
        y0: of ``x0``.

    Example:
        >>> one, two, three = torch.ones(1, 1), torch.ones(1, 1) + 1, torch.ones(1, 1) + 2
        >>> m_a, m_b = corner_multipliers(torch.mul, None, (three, two), (one, two), 3 * two, two)
        >>> m_a.tolist(), m_b.round(decimals=5).tolist()
        ([[2.0]], [[2.0]])

    """
    (a, b), (a0, b0) = x, x0
    with_a0, with_b0 = function(a0, b), function(a, b0)
    of_a, of_b = slopes or (partial(_chord, function), partial(_chord, _exchanged(function)))
    return (
        (of_a(a, a0, b, y, with_a0) + of_a(a, a0, b0, with_b0, y0)) / 2,
        (of_b(b, b0, a, y, with_b0) + of_b(b, b0, a0, with_a0, y0)) / 2,
    )


def of_second(name: str) -> Multipliers:
    """Return the rule of a function whose first operand does not differ.

    Args:
        name: of the function, behind ``torch.``.

    Example:
        >>> half, one, two = torch.ones(1, 1) / 2, torch.ones(1, 1), torch.ones(1, 1) + 1
        >>> values = torch.igamma(half, two), torch.igamma(half, one)
        >>> [each.item() > 0 for each in of_second("igamma")((half, two), (half, one), *values)]
        [False, True]

    """

    def multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
        (a, b), (_, b0) = x, x0
        slope = _chord(_exchanged(function_named(name)), b, b0, a, y, y0)
        return torch.zeros_like(slope), slope

    return multipliers


def _exchanged(function: Function) -> Function:
    def exchanged(b: Tensor, a: Tensor) -> Tensor:
        return function(a, b)

    return exchanged


def _chord(function: Function, x: Tensor, x0: Tensor, other: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    (slope, _) = chord_multiplier(function, (x, other), (x0, other), y, y0)
    # Where a function has no derivative, nothing hangs on it: the operand is the same.
    return torch.where((x == x0) & ~torch.isfinite(slope), 0, slope)


def _half_of_squares(x: Tensor, x0: Tensor, other: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of a hypotenuse: ``y² - y0² = x² - x0²``."""
    both = y + y0
    return (x + x0) / torch.where(both == 0, 1, both)


def _softplus_above(x: Tensor, x0: Tensor, other: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``other + log(1 + exp(x - other))``."""
    return log_of_sum(x - other, x0 - other, y - other, y0 - other)


hypot_slopes: Slopes = (_half_of_squares, _half_of_squares)
logaddexp_slopes: Slopes = (_softplus_above, _softplus_above)


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
