"""The rule of a cell: what comes in and the state before are two players, each switched first once.

A step is a function of its input and of the state before. Rules of atoms take both from reference to sample
together. Here the input is switched where the state is the reference's, and where it is the sample's; the
state likewise; the mean of both is its share, the Shapley value of two players (Shapley 1953). What a switch
does is divided by the rules of the atoms: nothing divides by a difference, and shares add up as they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.cell_graph import Multiplier, whole
from rewriter.engine.sweeps.derived import Coefficients, DerivedRecording, DerivedSweep, coefficients_of
from rewriter.engine.sweeps.sweep import GateSlots, Kept, Recording, State
from rewriter.engine.sweeps.two_players.cells import cell_of_the_library
from rewriter.engine.sweeps.two_players.program import program_of_players


class TwoPlayerSweep(DerivedSweep):
    """The sweep of a cell whose input and old state are two players.

    Args:
        derived: the sweep of the same cell by the rules of its atoms.

    Example:
        >>> from passes.recurrent.cells import LSTMCellAtoms
        >>> TwoPlayerSweep(DerivedSweep(LSTMCellAtoms())).slots.slots
        8

    """

    def __init__(self, derived: DerivedSweep) -> None:
        self.step, self.forward = derived.step, derived.forward
        self.cell = cell_of_the_library(self.step)
        self.program = self.cell or program_of_players(self.step)
        self.joined, self.direct = derived.joined, derived.direct
        count = self.step.gates
        # Input and hidden state have multipliers of their own, also where they are only added up.
        self.slots = GateSlots(2 * count, slice(0, count), slice(count, None))

    def record(self, steps: Recurrence, gates: Tensor) -> Recording:
        """See the base class."""
        fast = None if self.cell is None else self.cell.record(steps, gates)
        return fast or _Recording(self, steps, gates)

    def coefficients(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, Coefficients]]:
        """See the base class."""
        count = self.step.gates
        taken = pairs[len(self.step.kept) :]
        of_sample, of_reference = (tuple(each[side] for each in pairs) for side in (0, 1))
        with_input = self._kept_at([taken[0][0], *(each[1] for each in taken[1:])])
        with_state = self._kept_at([taken[0][1], *(each[0] for each in taken[1:])])
        by_input = [self._switched(with_input, of_reference), self._switched(of_sample, with_state)]
        by_state = [self._switched(with_state, of_reference), self._switched(of_sample, with_input)]
        found = []
        for k in range(len(self.step.new)):
            x, h = ([each[k] for each in side] for side in (by_input, by_state))
            gates = _mean([{j: each for j, each in old.items() if j < count} for old, _ in h])
            gates |= _mean([_inputs(each, count, joined=self.joined) for each, _ in x])
            found.append((k, coefficients_of({}, gates, _mean([old for _, old in h]), pairs[0][0])))
        return found

    def _kept_at(self, taken: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what is kept of a step whose input and state are of different ends."""
        lead = torch.broadcast_shapes(*(each.shape[:-1] for each in taken))  # type: ignore[no-untyped-call]
        x, h, *old = (each.expand(*lead, -1).reshape(-1, each.shape[-1]) for each in taken)
        found = self.forward(x + h, None, *old) if self.joined else self.forward(x, h, *old)
        return tuple(each.view(*lead, -1) for each in found[len(self.step.new) :])

    def _switched(
        self, end: Sequence[Tensor], begin: Sequence[Tensor]
    ) -> dict[int, tuple[Mapping[int, Multiplier], Mapping[int, Multiplier]]]:
        """Return what each new state reaches, of the gates and the old states, in one switch."""
        kept = zip(self.step.kept, end, begin, strict=False)
        return {
            k: (reached.gates, reached.old)
            for k, reached in self.step.backward({node: (a, b) for node, a, b in kept}, through=True)
        }


def _inputs(gates: Mapping[int, Multiplier], count: int, *, joined: bool) -> dict[int, Multiplier]:
    """Return what belongs to the input, in the slots behind those of the hidden state."""
    first = 0 if joined else count
    return {j - first + count: each for j, each in gates.items() if j >= first}


def _mean(both: Sequence[Mapping[int, Multiplier]]) -> dict[int, Multiplier]:
    a, b = both
    return {j: (whole(a[j]) + whole(b[j])) / 2 for j in a}


class _Recording(DerivedRecording):
    """Keeps what each step takes, too, behind what is kept of its atoms."""

    def __init__(self, sweep: TwoPlayerSweep, steps: Recurrence, gates: Tensor) -> None:
        super().__init__(sweep, steps, gates)
        self.taken: list[State] = [()] * len(self.at)

    def advance(self, t: int, state: State) -> State:
        """See the base class."""
        hidden = state[0] @ self.weight
        if self.sweep.joined:
            result = self.sweep.forward(self.at[t] + hidden, None, *state)
        else:
            hidden = hidden if self.bias is None else hidden + self.bias
            result = self.sweep.forward(self.at[t], hidden, *state)
        self.taken[t] = (self.at[t], hidden, *state)
        self.steps[t] = result[self.states :]
        return result[: self.states]

    def kept(self) -> Kept:
        """See the base class."""
        return (*super().kept(), *map(torch.stack, zip(*self.taken, strict=True)))
