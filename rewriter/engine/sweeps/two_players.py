"""The rule of a cell: what comes in and the state before are two players, each switched first once.

A step is a function of its input and of the state before. Rules of atoms take both from reference to sample
together. Here the input is switched where the state is the reference's, and where it is the sample's; the
state likewise; the mean of both is its share, the Shapley value of two players (Shapley 1953). What a switch
does is divided by the rules of the atoms: nothing divides by a difference, and shares add up as they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.cell_graph import Multiplier, whole
from rewriter.engine.sweeps.derived import Coefficients, DerivedRecording, DerivedSweep, coefficients_of
from rewriter.engine.sweeps.sweep import GateSlots, Kept, Recording, State

#: By what rule multipliers go through a cell.
Cells = Literal["deeplift", "shapley"]
CELLS = "deeplift", "shapley"
_cells: ContextVar[Cells] = ContextVar("rewriter_cells", default="deeplift")


@contextmanager
def cells_by(rule: Cells) -> Iterator[None]:
    """Say by what rule this thread explains cells.

    Example:
        >>> with cells_by("shapley"):
        ...     has_two_players()
        True

    """
    token = _cells.set(rule)
    try:
        yield
    finally:
        _cells.reset(token)


def has_two_players() -> bool:
    """Whether input and state of a cell are two players in this thread."""
    return _cells.get() == "shapley"


def check_cells(rule: Cells, model: nn.Module, linked: nn.Module) -> None:
    """Check that a rule of cells has cells to be the rule of.

    Args:
        rule: of the two.
        model: the user's.
        linked: the copy of it that is explained.

    Raises:
        RewriteError: for a model without a recurrence, and for a cell of torch's that goes step by step.

    """
    if rule == "deeplift":
        return
    with cells_by(rule):
        for name, cell in model.named_modules():
            if isinstance(cell, nn.RNNCellBase) and _has_atoms(linked, name):
                check_swept(
                    name or type(cell).__name__, "it is called by a loop that is no recurrence in a graph"
                )
    if not any(isinstance(each, Recurrence) for each in linked.modules()):
        raise RewriteError(
            "cells='shapley': the model has no recurrence whose cells it could be for; leave cells out, "
            "or pass blocks=..., which needs none"
        )


def _has_atoms(linked: nn.Module, name: str) -> bool:
    try:
        return any(isinstance(each, Atom) for each in linked.get_submodule(name).modules())
    except AttributeError:
        return False


def check_swept(name: str, reason: str) -> None:
    """Raise RewriteError if cells are to be explained by their own rule, of which one is not."""
    if has_two_players():
        raise RewriteError(
            f"{name}: cells='shapley' is for recurrences that are explained as a whole; this one goes step "
            f"by step: {reason}; leave cells out, or pass blocks=..., which needs no recurrence"
        )


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
        self.step, self.forward, self.program = derived.step, derived.forward, None
        self.joined, self.direct = derived.joined, derived.direct
        count = self.step.gates
        # Input and hidden state have multipliers of their own, also where they are only added up.
        self.slots = GateSlots(2 * count, slice(0, count), slice(count, None))

    def record(self, steps: Recurrence, gates: Tensor) -> Recording:
        """See the base class."""
        return _Recording(self, steps, gates)

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
