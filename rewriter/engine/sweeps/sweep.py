"""The rules of the table, composed for one step of each recurrent cell.

A sigmoid is a tanh, ``s(a) = (1 + tanh(a / 2)) / 2``, so one chord formula serves all gates of a cell:
the slope of tanh from ``b0`` to ``b`` is ``tanh(b - b0) / (b - b0) * (1 - u * u0)``, where ``u = tanh(b)``.
It is multiplied by the mean of the other operand of the product behind the gate. Constants are folded
into what is kept of the forward pass, so that a pair of sample and reference costs few operations.
"""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor

from passes.operations.elementwise.sigmoid_tanh_relu import tanh_over_

State = tuple[Tensor, ...]


class Kept(NamedTuple):
    """What the forward pass leaves of all steps for the sweep, or of one step.

    Args:
        before: the arguments of the activations, (T, B, F).
        after: their values.
        partner: half of the other operand of the product behind each, times the constant of the slope.
        passed: half of the operands that need no slope.

    """

    before: Tensor
    after: Tensor
    partner: Tensor | None = None
    passed: Tensor | None = None


class Hidden(NamedTuple):
    """The hidden Linear with each gate's rows scaled.

    Args:
        weight: (H, gates x H), transposed.
        bias: or None.

    """

    weight: Tensor
    bias: Tensor | None

    def of(self, h: Tensor) -> Tensor:
        """Return the hidden state's part of the gates."""
        return h @ self.weight if self.bias is None else torch.addmm(self.bias, h, self.weight)

    def onto(self, x_gates: Tensor, h: Tensor) -> Tensor:
        """Return the gates; the bias is in ``x_gates`` already."""
        return torch.addmm(x_gates, h, self.weight)


class Recording(abc.ABC):
    """The forward pass of one kind of cell, which writes what the sweep needs as it goes."""

    @abc.abstractmethod
    def advance(
        self, t: int, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the new state; gates come scaled."""

    @abc.abstractmethod
    def kept(self) -> Kept:
        """Return what all steps left."""


class CellSweep(abc.ABC):
    """One kind of cell: its forward pass, and the multipliers of one step."""

    #: What each gate's pre-activation is multiplied by, in torch's order of the gates.
    scales: tuple[float, ...]
    #: The gates' multipliers that belong to the hidden weights, and those that belong to the input's.
    hidden_gates = slice(None)
    input_gates = slice(None)
    #: Order of the hidden weights' gates in those multipliers.
    hidden_order: tuple[int, ...] = ()
    #: Number of gates' multipliers.
    gates: int
    #: Whether the hidden state's part of the gates is needed apart from the input's.
    apart = False
    #: Whether the state reaches the next step past the hidden weights.
    direct = False
    #: Name of the same steps in C, if there are any.
    compiled = ""

    @abc.abstractmethod
    def record(self, length: int, rows: int, size: int, like: Tensor) -> Recording:
        """Begin a forward pass over ``length`` steps of (rows, size) states."""

    def slopes(self, x: Kept, x0: Kept) -> Tensor:
        """Return the slope of each activation times the mean of its partner."""
        slope = tanh_over_(x.before - x0.before)
        slope.mul_(torch.addcmul(slope.new_ones(()), x.after, x0.after, value=-1))
        if x.partner is not None and x0.partner is not None:
            slope.mul_(x.partner + x0.partner)
        return slope

    @abc.abstractmethod
    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Sort what :meth:`step` needs by time step.

        Args:
            slopes: (T, n, M, A, H), one for each of the cell's A activations.
            passed: sums over sample and reference, (T, n, M, 1 or 2, H).

        """

    @abc.abstractmethod
    def targets(self, gates: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of (K, n, M, gates, H) that :meth:`step` writes."""

    @abc.abstractmethod
    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: tuple[Tensor, ...]) -> None:
        """Turn the multipliers ``d`` of the new state, in place, into those of the old one.

        Args:
            at: what :meth:`prepare` made for the step.
            d: (K, n, M, H) per state; the part through the hidden weights is the caller's.
            out: what :meth:`targets` made, receives the multipliers of the gates.

        """
