"""The sweep of a cell, derived from its graph and the rules of its atoms.

Multipliers of a step's results reach its gates and its old state through products with slopes and means,
which depend on forward values only. So what a step does to them is, element by element,

    d state[q] += C[s, q] · d state[s]      where the new state s is made of the new state q,
    d gates[j]  = Σ A[s, j] · d state[s]    over the new states s,
    d old[r]    = Σ B[s, r] · d state[s].

The coefficients are found by taking a one back through the cell's graph, from each new state to the next, for
as many time steps at once as fit in the cache. A step then costs one product per coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.recurrent.recurrence import Recurrence
from passes.user_code.reach import Unchanging
from rewriter.engine.sweeps.cell_graph import CellGraph, Multiplier, Product, whole
from rewriter.engine.sweeps.library import functions_for
from rewriter.engine.sweeps.program import ProgramSteps, Written, program_of
from rewriter.engine.sweeps.sweep import GateSlots, Kept, Recording, State, Step, Sweep, Swept, faded, fused
from rewriter.engine.sweeps.tried_out import NotElementwiseError
from rewriter.engine.tiles import spans

# Bytes of a core's cache that coefficients of several steps may take.
_CACHE = 12_000_000
# After so many steps multipliers that have faded away are cleared.
_CLEAN = 4


class Coefficients(NamedTuple):
    """What a new state's multiplier is taken times.

    Args:
        onward: for other new states, by their number.
        first: the first of the slots that follow.
        gates: for the gates in neighbouring slots, (T, n, B, slots, H), or None.
        old: for the old states, by their number.

    """

    onward: Mapping[int, Tensor]
    first: int
    gates: Tensor | None
    old: Mapping[int, Tensor]


class DerivedSweep(Sweep, Unchanging):
    """The sweep of any cell that has a :class:`CellGraph`.

    Args:
        cell: takes both parts of the gates and the old state, returns the new state.

    Raises:
        NotElementwiseError: for a cell that mixes elements.

    Example:
        >>> from passes.recurrent.cells import GRUCellAtoms
        >>> sweep = DerivedSweep(GRUCellAtoms())
        >>> sweep.slots.slots, sweep.direct
        (6, True)

    """

    def __init__(self, cell: nn.Module) -> None:
        self.step = CellGraph(cell)
        self.forward = self.step.forward()
        self.program: Written | None = program_of(self.step)
        count = self.step.gates
        self.joined = len(self.step.entrances) == 1
        apart = GateSlots(2 * count, slice(0, count), slice(count, None))
        self.slots = GateSlots(count) if self.joined else apart
        self.direct = self.step.reaches(self.step.old[0])
        if self.step.norms and not self.program:
            raise NotElementwiseError("the cell has a norm, and something that the library has no form of")

    def __reduce__(self) -> tuple[type[DerivedSweep], tuple[nn.Module]]:
        return type(self), (self.step.cell,)

    def record(self, steps: Recurrence, gates: Tensor) -> Recording:
        """See the base class."""
        return DerivedRecording(self, steps, gates)

    def coefficients(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, Coefficients]]:
        """Return the coefficients of each new state for some time steps."""
        return [
            (k, coefficients_of(reached.new, reached.gates, reached.old, pairs[0][0]))
            for k, reached in self.step.backward(dict(zip(self.step.kept, pairs, strict=True)))
        ]

    def stepper(
        self, swept: Swept, d: list[Tensor], gates: Tensor, ordered: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> Step:
        """See the base class."""
        compiled = self.compiled_for(gates)
        if compiled and self.program:
            return ProgramSteps(compiled, self.program, swept, d, gates)
        least = faded(gates.dtype)
        # As the pairs are laid out: outputs, references, and what the batch is merged of.
        lead = (swept.outputs, swept.references, swept.outer, swept.samples, -1)
        states = [each.view(*lead, each.shape[-1]) for each in d]
        places = gates.view(gates.shape[0], *lead, *gates.shape[-2:]).unbind(0)
        at = self._coefficients_of_each_step(swept, ordered)

        def step(t: int, place: int) -> None:
            if t % _CLEAN == 0:
                for each in d:
                    torch.hardshrink(each, least, out=each)
            self._turn_back(next(at), states, places[place])

        return step

    def runs_on(self, like: Tensor) -> bool:
        """Whether there is a sweep for a device and a dtype: norms have one in the library alone."""
        return not self.step.norms or self.compiled_for(like) is not None

    def compiled_for(self, like: Tensor) -> Any:
        """Return the library's function that runs the steps for a device and a dtype, None if it has none."""
        found = functions_for(like) if self.program else None
        return found and self.program and found[self.program.function]

    def _coefficients_of_each_step(
        self, swept: Swept, ordered: Callable[[Sequence[Any]], Iterable[Any]]
    ) -> Iterator[list[tuple[int, Coefficients]]]:
        """Yield the coefficients of each step, of as many at a time as fit in the cache."""
        length = swept.x[0].shape[0]
        step_bytes = sum(each[0].nbytes for each in swept.x) * swept.references
        cache = _CACHE if swept.x[0].device.type == "cpu" else 64 * _CACHE
        both = list(zip(swept.x, swept.x0, strict=True))
        for begin, end in ordered(list(spans(length, max(1, cache // step_bytes)))):
            # Rows that are anywhere are gathered: of a few steps at a time.
            found = self.coefficients([swept.rows(a[begin:end], b[begin:end]) for a, b in both])
            yield from ordered(_by_step(found, end - begin))

    def _turn_back(
        self, coefficients: list[tuple[int, Coefficients]], d: list[Tensor], gates: Tensor
    ) -> None:
        written: set[int] = set()
        old: dict[int, Tensor] = {}
        for k, (onward, first, to_gates, _) in coefficients:
            for q, each in onward.items():
                d[q].addcmul_(d[k], each)
            if to_gates is None:
                continue
            slots = range(first, first + to_gates.shape[-2])
            place = gates[..., first : slots.stop, :]
            if written.isdisjoint(slots):
                torch.mul(d[k].unsqueeze(-2), to_gates, out=place)
            else:
                for j in set(slots) - written:
                    gates[..., j, :].zero_()
                place.addcmul_(d[k].unsqueeze(-2), to_gates)
            written.update(slots)
        for j in set(range(gates.shape[-2])) - written:
            gates[..., j, :].zero_()
        for k, found in coefficients:
            for r, each in found.old.items():
                old[r] = old[r].addcmul_(d[k], each) if r in old else d[k] * each
        for r, multiplier in enumerate(d):
            if r in old:
                multiplier.copy_(old[r])
            elif r:
                multiplier.zero_()


def coefficients_of(
    new: Mapping[int, Multiplier],
    gates: Mapping[int, Multiplier],
    old: Mapping[int, Multiplier],
    like: Tensor,
) -> Coefficients:
    """Return what a new state reaches as coefficients.

    Args:
        new: other new states, by their number.
        gates: by their slots.
        old: the old states.
        like: a kept tensor, (T, n, *, F).

    """
    every_step = (like.shape[0], *[1] * (like.dim() - 2))

    def of_steps(found: Mapping[int, Multiplier]) -> dict[int, Multiplier]:
        # What no atom lies on is a number, the same at all steps.
        return {
            k: each
            if len(each.shape) == like.dim()
            else whole(each).to(like).expand(*every_step, each.shape[-1] if each.shape else 1)
            for k, each in found.items()
        }

    return Coefficients(
        {q: whole(each) for q, each in of_steps(new).items()},
        min(gates, default=0),
        _stacked(of_steps(gates)),
        {r: whole(each) for r, each in of_steps(old).items()},
    )


def _stacked(slots: Mapping[int, Multiplier]) -> Tensor | None:
    """Put coefficients of neighbouring slots into one tensor, zeros where there is none."""
    if not slots:
        return None
    if len(slots) == 1:
        return whole(*slots.values()).unsqueeze(-2)
    parts = list(slots.values())
    shape = torch.broadcast_shapes(*(each.shape for each in parts))  # type: ignore[no-untyped-call]
    low, high = min(slots), max(slots) + 1
    like = parts[0].a if isinstance(parts[0], Product) else parts[0]
    stacked = like.new_empty(*shape[:-1], high - low, shape[-1])
    for j, place in zip(range(low, high), stacked.unbind(-2), strict=True):
        part = slots.get(j)
        if part is None:
            place.zero_()
        elif isinstance(part, Product):
            torch.mul(part.a, part.b, out=place)
        else:
            place.copy_(whole(part))
    return stacked


def _by_step(found: list[tuple[int, Coefficients]], count: int) -> list[list[tuple[int, Coefficients]]]:
    """Sort coefficients of several steps by step."""
    steps: list[list[tuple[int, Coefficients]]] = [[] for _ in range(count)]
    for k, (onward, first, gates, old) in found:
        each_onward = {q: each.unbind(0) for q, each in onward.items()}
        each_old = {r: each.unbind(0) for r, each in old.items()}
        each_gates = [None] * count if gates is None else gates.unbind(0)
        for t, step in enumerate(steps):
            step.append(
                (
                    k,
                    Coefficients(
                        {q: each[t] for q, each in each_onward.items()},
                        first,
                        each_gates[t],
                        {r: each[t] for r, each in each_old.items()},
                    ),
                )
            )
    return steps


class DerivedRecording(Recording):
    """A forward pass by torch's operations.

    Args:
        sweep: of the cell.
        steps: the recurrence.
        gates: the input's part of the gates, (T, B, G).

    """

    def __init__(self, sweep: DerivedSweep, steps: Recurrence, gates: Tensor) -> None:
        weight, bias = fused(steps.hidden)
        self.sweep = sweep
        self.weight, self.bias = weight.T, bias
        if sweep.joined and bias is not None:
            gates = gates + bias
        self.at = gates.unbind(0)
        self.states = len(sweep.step.new)
        self.steps: list[tuple[Tensor, ...]] = [()] * len(self.at)

    def advance(self, t: int, state: State) -> State:
        """See the base class."""
        if self.sweep.joined:
            gates, hidden = torch.addmm(self.at[t], state[0], self.weight), None
        else:
            gates = self.at[t]
            hidden = (
                state[0] @ self.weight if self.bias is None else torch.addmm(self.bias, state[0], self.weight)
            )
        result = self.sweep.forward(gates, hidden, *state)
        self.steps[t] = result[self.states :]
        return result[: self.states]

    def kept(self) -> Kept:
        """See the base class."""
        return tuple(map(torch.stack, zip(*self.steps, strict=True)))
