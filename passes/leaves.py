"""Leaf modules: atoms, to which attribution rules bind, and what only moves numbers.

An atom keeps no state and may be called any number of times in one forward pass. The activation
atoms carry names of their own (``SigmoidAtom``, not ``Sigmoid``) because shap looks its rules up
by class name and its own rule for ``Sigmoid`` is wrong for a module that is called twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Atom(nn.Module):
    """Base of all atoms: a pure function of its tensor arguments, batch first."""


class Layout(nn.Module):
    """Base of the leaves that only move numbers, or check them: linear for every attribution rule."""

    #: Of the layer that it is a part of, for error messages.
    name: str = ""


class SigmoidAtom(Atom, nn.Sigmoid):
    """Logistic function, elementwise.

    Example:
        >>> SigmoidAtom()(torch.zeros(1))
        tensor([0.5000])

    """


class TanhAtom(Atom, nn.Tanh):
    """Hyperbolic tangent, elementwise.

    Example:
        >>> TanhAtom()(torch.zeros(1))
        tensor([0.])

    """


class ReLUAtom(Atom, nn.ReLU):
    """Rectifier ``max(x, 0)``, elementwise.

    Example:
        >>> ReLUAtom()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``max(input, 0)``, any shape."""
        return torch.relu(input)


class Mul(Atom):
    """Product of two operands that both depend on the model's input; shapes broadcast.

    Example:
        >>> Mul()(torch.tensor([2.0]), torch.tensor([3.0]))
        tensor([6.])

    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a * b``."""
        return a * b
