"""Rules for functions of each element: a closed form where one is known, else the slope of the chord."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from passes.activations import Elementwise
from rewriter._multipliers import Operands, Rule


def chord_multiplier(
    function: Callable[[Tensor], Tensor], x: Operands, x0: Operands, y: Tensor, y0: Tensor
) -> Operands:
    """Rescale any elementwise function: the slope of its chord, its mean derivative where that is lost.

    Example:
        >>> one = torch.ones(1, 1)
        >>> chord_multiplier(torch.square, (3 * one,), (one,), 9 * one, one)
        (tensor([[4.]]),)

    """
    delta = x[0] - x0[0]
    # Stock shap's threshold: below it the difference of the values is rounding.
    close = delta.abs() < 1e-6
    slope = (y - y0) / torch.where(close, 1, delta)
    if bool(close.any()):
        slope = torch.where(close, (_derivative(function, x[0]) + _derivative(function, x0[0])) / 2, slope)
    return (slope,)


def _derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        # Pairs come with a dimension in front, which a module that counts dimensions does not expect.
        leaf = x.detach().flatten(0, 1).requires_grad_()
        (derivative,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return derivative.view(x.shape)


def square_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the square: ``x² - x0² = (x + x0)(x - x0)``.

    Example:
        >>> square_multiplier((torch.ones(1),), (torch.zeros(1),), torch.ones(1), torch.zeros(1))
        (tensor([1.]),)

    """
    return (x[0] + x0[0],)


#: Closed forms by the name of the function; nothing is lost in them where ``x`` is close to ``x0``.
CLOSED: Mapping[str, Rule] = {"square": square_multiplier}


def rule_for(atom: Elementwise) -> Rule:
    """Return the rule of an atom."""
    if atom.function in CLOSED and not atom.options:
        return CLOSED[atom.function]
    return partial(chord_multiplier, atom.forward)
