"""The table of attribution rules: one pure function per atom.

Every rule takes the operands of an atom at the sample and at the reference, and what the atom made of
them, and returns one multiplier per operand, so that

    sum over operands of multiplier * (operand - reference operand)  =  output - reference output

exactly. Operands and outputs have one shape (broadcasting is the caller's business). The rules are
elementwise, keep the dtype and know nothing about batches or hooks; all explainers bind to them.

Sources: the rescale rule is that of DeepLIFT (Shrikumar et al. 2017, section 3.5.2); the product rule
is the Shapley value of a game with two players (Lundberg and Lee 2017 use it in DeepSHAP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from passes.leaves import Mul, ReLUAtom, SigmoidAtom, TanhAtom

Operands = tuple[Tensor, ...]
Rule = Callable[[Operands, Operands, Tensor, Tensor], Operands]


def sigmoid_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the logistic function: the slope of its chord.

    From ``s(x) - s(x0) = tanh((x - x0) / 2) (y (1 - y0) + y0 (1 - y))``, so that nothing is lost where
    ``x`` is close to ``x0``; there the slope is the derivative.

    Example:
        >>> zero = torch.zeros(1)
        >>> sigmoid_multiplier((zero,), (zero,), zero + 0.5, zero + 0.5)
        (tensor([0.2500]),)

    """
    return (tanh_over_((x[0] - x0[0]) / 2) * (y * (1 - y0) + y0 * (1 - y)) / 2,)


def tanh_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the hyperbolic tangent: the slope of its chord.

    From the addition theorem ``tanh(x) - tanh(x0) = tanh(x - x0) (1 - tanh(x) tanh(x0))``.

    Example:
        >>> zero = torch.zeros(1)
        >>> tanh_multiplier((zero,), (zero,), zero, zero)
        (tensor([1.]),)

    """
    return (tanh_over_(x[0] - x0[0]) * (1 - y * y0),)


def relu_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the rectifier: the slope of its chord, and its derivative where ``x`` equals ``x0``.

    Example:
        >>> x, x0 = torch.tensor([3.0, 2.0]), torch.tensor([-1.0, 2.0])
        >>> relu_multiplier((x,), (x0,), x.relu(), x0.relu())
        (tensor([0.7500, 1.0000]),)

    """
    delta = x[0] - x0[0]
    same = delta == 0
    return (torch.where(same, (x[0] > 0).to(delta.dtype), (y - y0) / torch.where(same, 1, delta)),)


def product_multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split a product of two operands: each is multiplied by the mean of the other.

    Example:
        >>> one, two, three = torch.ones(1), torch.ones(1) + 1, torch.ones(1) + 2
        >>> product_multipliers((three, two), (one, two), 3 * two, two)
        (tensor([2.]), tensor([2.]))

    """
    # A mask may be one of them: the sum of two booleans would be a boolean.
    (a, b), (a0, b0) = ((side[0].to(y.dtype), side[1].to(y.dtype)) for side in (x, x0))
    return (b + b0) / 2, (a + a0) / 2


RULES: Mapping[type[nn.Module], Rule] = {
    SigmoidAtom: sigmoid_multiplier,
    TanhAtom: tanh_multiplier,
    ReLUAtom: relu_multiplier,
    Mul: product_multipliers,
}


def tanh_over_(delta: Tensor) -> Tensor:
    """Return ``tanh(delta) / delta``, 1 at 0 and accurate to rounding everywhere; overwrites ``delta``.

    The function is even, and flat at 0: so the smallest normal number can be added to ``|delta|``, after
    which nothing is left to divide by zero.

    Example:
        >>> tanh_over_(torch.tensor([0.0, -1.0]))
        tensor([1.0000, 0.7616])

    """
    delta.abs_().add_(torch.finfo(delta.dtype).tiny)
    return torch.tanh(delta).div_(delta)
