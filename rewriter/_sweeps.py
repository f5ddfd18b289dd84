"""The rules of the table, composed for one step of each recurrent cell.

A sigmoid is a tanh, ``s(a) = (1 + tanh(a / 2)) / 2``, so one chord formula serves all gates of a cell:
the slope of tanh from ``b0`` to ``b`` is ``tanh(b - b0) / (b - b0) * (1 - u * u0)``, where ``u = tanh(b)``.
It is multiplied by the mean of the other operand of the product behind the gate. Constants are folded
into what is kept of the forward pass, so that a pair of sample and reference costs few operations.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from passes.cells import GRUCellAtoms, LSTMCellAtoms, RNNCellAtoms
from rewriter._multipliers import Rule, relu_multiplier, tanh_multiplier, tanh_over_


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

    @abc.abstractmethod
    def advance(
        self, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the new state, and what :meth:`keep` needs of this step; gates come scaled."""

    @abc.abstractmethod
    def keep(self, steps: Sequence[Tensor]) -> Kept:
        """Put together what :meth:`advance` noted, each stacked over time."""

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
    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: Tensor) -> None:
        """Turn the multipliers ``d`` of the new state, in place, into those of the old one.

        Args:
            at: what :meth:`prepare` made for the step.
            d: (K, n, M, H) per state; the part through the hidden weights is the caller's.
            out: (K, n, M, gates, H), receives the multipliers of the gates.

        """


class LSTMSweep(CellSweep):
    """LSTM; activations ``i f g o`` and the tanh of the cell state."""

    scales = (0.5, 0.5, 1.0, 0.5)
    gates = 4

    def advance(
        self, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """See the base class."""
        before = hidden.onto(x_gates, state[0])
        u = before.tanh()
        i, f, _, o = (u + 1).mul_(0.5).chunk(4, -1)
        c = torch.addcmul(f * state[1], i, u.chunk(4, -1)[2])
        squashed = c.tanh()
        return (o * squashed, c), (before, u, c, squashed, state[1])

    def keep(self, steps: Sequence[Tensor]) -> Kept:
        """See the base class."""
        before, u, c, squashed, c_old = steps
        u_i, u_f, g, u_o = u.chunk(4, -1)
        partner = torch.cat([g / 8, c_old / 8, (u_i + 1) / 4, squashed / 8, (u_o + 1) / 4], -1)
        return Kept(torch.cat([before, c], -1), torch.cat([u, squashed], -1), partner, (u_f + 1) / 4)

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        assert passed is not None
        each = slopes[..., 3, :], slopes[..., 4, :], slopes[..., :3, :], passed[..., 0, :]
        return list(zip(*(part.unbind(0) for part in each), strict=True))

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: Tensor) -> None:
        """See the base class."""
        output, cell, gates, forget = at
        d_h, d_c = d
        torch.mul(d_h, output, out=out[..., 3, :])
        d_c.addcmul_(d_h, cell)
        torch.mul(d_c.unsqueeze(-2), gates, out=out[..., :3, :])
        d_c.mul_(forget)


class GRUSweep(CellSweep):
    """GRU; activations ``r z n``, multipliers of the gates: hidden ``n``, then ``r z n``."""

    scales = (0.5, 0.5, 1.0)
    gates = 4
    hidden_gates = slice(0, 3)
    input_gates = slice(1, 4)
    hidden_order = (2, 0, 1)
    direct = True
    apart = True

    def advance(
        self, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """See the base class."""
        (h,) = state
        cuts = 2 * h.shape[-1], h.shape[-1]
        h_gates = hidden.of(h)
        x_rz, x_n = x_gates.split_with_sizes(cuts, -1)
        h_rz, h_n = h_gates.split_with_sizes(cuts, -1)
        before = x_rz + h_rz
        gate = before.tanh().add_(1).mul_(0.5)
        r, z = gate.chunk(2, -1)
        before_n = torch.addcmul(x_n, r, h_n)
        n = before_n.tanh()
        change = h - n
        return (torch.addcmul(n, z, change),), (before, before_n, gate, n, h_n, change)

    def keep(self, steps: Sequence[Tensor]) -> Kept:
        """See the base class."""
        before, before_n, gate, n, h_n, change = steps
        z = gate.chunk(2, -1)[1]
        return Kept(
            torch.cat([before, before_n], -1),
            torch.cat([2 * gate - 1, n], -1),
            torch.cat([h_n / 8, change / 8, (1 - z) / 2], -1),
            gate / 2,
        )

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        assert passed is not None
        each = *slopes.unbind(-2), *passed.unbind(-2)
        return list(zip(*(part.unbind(0) for part in each), strict=True))

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: Tensor) -> None:
        """See the base class."""
        reset, update, new, r, z = at
        (d_h,) = d
        d_hidden_n, d_r, d_z, d_n = out.unbind(-2)
        torch.mul(d_h, new, out=d_n)
        torch.mul(d_n, r, out=d_hidden_n)
        torch.mul(d_n, reset, out=d_r)
        torch.mul(d_h, update, out=d_z)
        d_h.mul_(z)


class RNNSweep(CellSweep):
    """Elman cell.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    """

    scales = (1.0,)
    gates = 1

    def __init__(self, nonlinearity: str) -> None:
        self.activation = torch.tanh if nonlinearity == "tanh" else torch.relu
        self.rule: Rule = tanh_multiplier if nonlinearity == "tanh" else relu_multiplier

    def advance(
        self, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """See the base class."""
        before = hidden.onto(x_gates, state[0])
        after = self.activation(before)
        return (after,), (before, after)

    def keep(self, steps: Sequence[Tensor]) -> Kept:
        """See the base class."""
        return Kept(steps[0], steps[1])

    def slopes(self, x: Kept, x0: Kept) -> Tensor:
        """See the base class."""
        return self.rule((x.before,), (x0.before,), x.after, x0.after)[0]

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        return [(part,) for part in slopes[..., 0, :].unbind(0)]

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: Tensor) -> None:
        """See the base class."""
        torch.mul(d[0], at[0], out=out[..., 0, :])


def sweep_for(cell: nn.Module) -> CellSweep | None:
    """Return the sweep of a cell's atoms, or None for a cell of somebody else.

    Example:
        >>> type(sweep_for(GRUCellAtoms())).__name__
        'GRUSweep'

    """
    if type(cell) is LSTMCellAtoms:
        return LSTMSweep()
    if type(cell) is GRUCellAtoms:
        return GRUSweep()
    if type(cell) is RNNCellAtoms:
        return RNNSweep(cell.nonlinearity)
    return None
