"""The rules of the logistic function, the hyperbolic tangent and the rectifier: slopes of their chords.

Source: the rescale rule of DeepLIFT (Shrikumar et al. 2017, section 3.5.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.operations.contract import Operands


def sigmoid_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the logistic function: the slope of its chord.

    From ``s(x) - s(x0) = tanh((x - x0) / 2) (y (1 - y0) + y0 (1 - y))``, so that nothing is lost where
    ``x`` is close to ``x0``; there the slope is the derivative.

    Example:
        >>> zero = torch.zeros(1)
        >>> sigmoid_multiplier((zero,), (zero,), zero + 0.5, zero + 0.5)
        (tensor([0.2500]),)

    """
    # What acts on one side alone comes first: it has fewer rows than the pairs, and halves are exact.
    spread = torch.addcmul(y * ((1 - y0) / 2), y0, (1 - y) / 2)
    return (tanh_over_(x[0] / 2 - x0[0] / 2).mul_(spread),)


def tanh_multiplier(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Rescale the hyperbolic tangent: the slope of its chord.

    From the addition theorem ``tanh(x) - tanh(x0) = tanh(x - x0) (1 - tanh(x) tanh(x0))``.

    Example:
        >>> zero = torch.zeros(1)
        >>> tanh_multiplier((zero,), (zero,), zero, zero)
        (tensor([1.]),)

    """
    return (tanh_over_(x[0] - x0[0]).mul_(torch.addcmul(y.new_ones(()), y, y0, value=-1)),)


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
