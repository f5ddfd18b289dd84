"""The LSTM, the GRU and the Elman cell as sweeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passes.operations.contract import Multipliers
from passes.operations.elementwise.sigmoid_tanh_relu import relu_multiplier, tanh_multiplier
from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms, RNNCellAtoms
from rewriter.engine.sweeps.sweep import CellSweep, Hidden, Kept, Recording


class _LSTMRecording(Recording):
    def __init__(self, length: int, rows: int, size: int, like: Tensor) -> None:
        self.size = size
        self.before, self.after, self.partner = (like.new_empty(length, rows, 5 * size) for _ in range(3))
        four, one = slice(0, 4 * size), slice(4 * size, None)
        self.at = list(
            zip(
                self.before[..., four].unbind(0),
                self.after[..., four].unbind(0),
                self.after[..., 2 * size : 3 * size].unbind(0),
                self.before[..., one].unbind(0),
                self.after[..., one].unbind(0),
                self.partner[..., size : 2 * size].unbind(0),
                strict=True,
            )
        )
        self.sigmoids = like.new_empty(rows, 4 * size)
        self.i, self.f, _, self.o = self.sigmoids.chunk(4, -1)

    def advance(
        self, t: int, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See the base class."""
        before, after, g, c, squashed, c_old = self.at[t]
        before.copy_(hidden.onto(x_gates, state[0]))
        torch.tanh(before, out=after)
        torch.add(after, 1, out=self.sigmoids).mul_(0.5)
        torch.mul(state[1], 1 / 8, out=c_old)
        torch.addcmul(self.f * state[1], self.i, g, out=c)
        torch.tanh(c, out=squashed)
        return self.o * squashed, c

    def kept(self) -> Kept:
        """See the base class."""
        i, f, g, o, squashed = self.after.chunk(5, -1)
        to_i, _, to_g, to_o, to_c = self.partner.chunk(5, -1)
        torch.div(g, 8, out=to_i)
        torch.add(i, 1, out=to_g).div_(4)
        torch.div(squashed, 8, out=to_o)
        torch.add(o, 1, out=to_c).div_(4)
        return Kept(self.before, self.after, self.partner, (f + 1).div_(4))


class LSTMSweep(CellSweep):
    """LSTM; activations ``i f g o`` and the tanh of the cell state."""

    scales = (0.5, 0.5, 1.0, 0.5)
    gates = 4
    compiled = "lstm"

    def record(self, length: int, rows: int, size: int, like: Tensor) -> Recording:
        """See the base class."""
        return _LSTMRecording(length, rows, size, like)

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        assert passed is not None
        each = slopes[..., 3, :], slopes[..., 4, :], slopes[..., :3, :], passed[..., 0, :]
        return list(zip(*(part.unbind(0) for part in each), strict=True))

    def targets(self, gates: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        return gates[..., 3, :], gates[..., :3, :]

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: tuple[Tensor, ...]) -> None:
        """See the base class."""
        output, cell, gates, forget = at
        d_h, d_c = d
        torch.mul(d_h, output, out=out[0])
        d_c.addcmul_(d_h, cell)
        torch.mul(d_c.unsqueeze(-2), gates, out=out[1])
        d_c.mul_(forget)


class _GRURecording(Recording):
    def __init__(self, length: int, rows: int, size: int, like: Tensor) -> None:
        self.size = size
        self.before, self.after, self.partner = (like.new_empty(length, rows, 3 * size) for _ in range(3))
        two, one = slice(0, 2 * size), slice(2 * size, None)
        self.at = list(
            zip(
                self.before[..., two].unbind(0),
                self.after[..., two].unbind(0),
                self.before[..., one].unbind(0),
                self.after[..., one].unbind(0),
                self.partner[..., :size].unbind(0),
                self.partner[..., size : 2 * size].unbind(0),
                strict=True,
            )
        )
        self.sigmoids = like.new_empty(rows, 2 * size)
        self.r, self.z = self.sigmoids.chunk(2, -1)

    def advance(
        self, t: int, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See the base class."""
        before, after, before_n, n, to_h_n, change = self.at[t]
        cuts = 2 * self.size, self.size
        x_rz, x_n = x_gates.split_with_sizes(cuts, -1)
        h_rz, h_n = hidden.of(state[0]).split_with_sizes(cuts, -1)
        to_h_n.copy_(h_n)
        torch.add(x_rz, h_rz, out=before)
        torch.tanh(before, out=after)
        torch.add(after, 1, out=self.sigmoids).mul_(0.5)
        torch.addcmul(x_n, self.r, h_n, out=before_n)
        torch.tanh(before_n, out=n)
        torch.sub(state[0], n, out=change)
        return (torch.addcmul(n, self.z, change),)

    def kept(self) -> Kept:
        """See the base class."""
        size = self.size
        gates = self.after[..., : 2 * size]
        self.partner[..., : 2 * size] /= 8
        torch.sub(1, gates[..., size:], out=self.partner[..., 2 * size :]).div_(4)
        return Kept(self.before, self.after, self.partner, (gates + 1).div_(4))


class GRUSweep(CellSweep):
    """GRU; activations ``r z n``, multipliers of the gates: hidden ``n``, then ``r z n``."""

    scales = (0.5, 0.5, 1.0)
    gates = 4
    hidden_gates = slice(0, 3)
    input_gates = slice(1, 4)
    hidden_order = (2, 0, 1)
    direct = True
    apart = True
    compiled = "gru"

    def record(self, length: int, rows: int, size: int, like: Tensor) -> Recording:
        """See the base class."""
        return _GRURecording(length, rows, size, like)

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        assert passed is not None
        each = *slopes.unbind(-2), *passed.unbind(-2)
        return list(zip(*(part.unbind(0) for part in each), strict=True))

    def targets(self, gates: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        return gates.unbind(-2)

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: tuple[Tensor, ...]) -> None:
        """See the base class."""
        reset, update, new, r, z = at
        (d_h,) = d
        d_hidden_n, d_r, d_z, d_n = out
        torch.mul(d_h, new, out=d_n)
        torch.mul(d_n, r, out=d_hidden_n)
        torch.mul(d_n, reset, out=d_r)
        torch.mul(d_h, update, out=d_z)
        d_h.mul_(z)


class _RNNRecording(Recording):
    def __init__(self, nonlinearity: str, length: int) -> None:
        self.activation = torch.tanh if nonlinearity == "tanh" else torch.relu
        self.steps: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * length

    def advance(
        self, t: int, x_gates: Tensor, hidden: Hidden, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See the base class."""
        before = hidden.onto(x_gates, state[0])
        after = self.activation(before)
        self.steps[t] = before, after
        return (after,)

    def kept(self) -> Kept:
        """See the base class."""
        before, after = zip(*self.steps, strict=True)
        return Kept(torch.stack(before), torch.stack(after))


class RNNSweep(CellSweep):
    """Elman cell.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    """

    scales = (1.0,)
    gates = 1

    def __init__(self, nonlinearity: str) -> None:
        self.nonlinearity = nonlinearity
        self.rule: Multipliers = tanh_multiplier if nonlinearity == "tanh" else relu_multiplier

    def record(self, length: int, rows: int, size: int, like: Tensor) -> Recording:
        """See the base class."""
        return _RNNRecording(self.nonlinearity, length)

    def slopes(self, x: Kept, x0: Kept) -> Tensor:
        """See the base class."""
        return self.rule((x.before,), (x0.before,), x.after, x0.after)[0]

    def prepare(self, slopes: Tensor, passed: Tensor | None) -> list[tuple[Tensor, ...]]:
        """See the base class."""
        return [(part,) for part in slopes[..., 0, :].unbind(0)]

    def targets(self, gates: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        return (gates[..., 0, :],)

    def step(self, at: tuple[Tensor, ...], d: list[Tensor], out: tuple[Tensor, ...]) -> None:
        """See the base class."""
        torch.mul(d[0], at[0], out=out[0])


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
