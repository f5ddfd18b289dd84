"""Recurrences in an explanation: a loop that keeps the states, and one that carries multipliers back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.cell_graph import whole
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.sweep import fused
from rewriter.engine.tape import Outers
from rewriter.onnx_explainer.rows import Rows
from rewriter.onnx_explainer.scans import scan

State = tuple[Tensor, ...]


class Left(NamedTuple):
    """What a run of a recurrence left.

    Args:
        kept: what the sweep needs of all steps, (T, B, F) each.
        mask: (T, B, 1) or None.

    """

    kept: tuple[Tensor, ...]
    mask: Tensor | None


class Place(NamedTuple):
    """What a coefficient is taken for.

    Args:
        kind: ``"new"``, ``"gates"`` or ``"old"``.
        source: the new state whose multiplier it is taken times.
        place: the number of the new state, of the slot of the gates, or of the old state.

    """

    kind: str
    source: int
    place: int


class StepBody:
    """One step of a recurrence: of the state and the gates, to the new state, twice.

    Args:
        sweep: whose cell it is.
        joined: the hidden state's part is added to the gates; else it comes beside them.
        projected: a Linear follows the cell.
        masked: a mask says where the step counts.

    """

    def __init__(self, sweep: DerivedSweep, *, biased: bool, projected: bool, masked: bool) -> None:
        self.cell = sweep.forward
        self.joined, self.biased, self.projected, self.masked = sweep.joined, biased, projected, masked
        self.states = len(sweep.step.new)

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the new state, to be carried and to be stacked."""
        state, (gates, *rest) = given[: self.states], given[self.states :]
        mask = rest.pop(0) if self.masked else None
        weight = rest.pop(0)
        if self.joined:
            gates, hidden = torch.addmm(gates, state[0], weight), None
        elif self.biased:
            hidden = torch.addmm(rest.pop(0), state[0], weight)
        else:
            hidden = state[0] @ weight
        new = self.cell(gates, hidden, *state)[: self.states]
        if self.projected:
            projection = rest.pop(0)
            h = torch.addmm(rest.pop(0), new[0], projection) if rest else new[0] @ projection
            new = (h, *new[1:])
        if mask is not None:
            new = tuple(torch.where(mask, a, b) for a, b in zip(new, state, strict=True))
        return *new, *new


class TurnBody:
    """One step of a sweep: of multipliers of the new state, to those of the old one and of the gates.

    Args:
        sweep: whose step it is.
        places: what the coefficients are, in the order in which they come.
        projected: a Linear follows the cell.
        masked: a mask says how much the step counts.
        given: whether multipliers of what the step gave are added.

    """

    def __init__(
        self, sweep: DerivedSweep, places: Sequence[Place], *, projected: bool, masked: bool, given: bool
    ) -> None:
        self.direct, self.slots = sweep.direct, sweep.slots
        self.places, self.projected, self.masked, self.given = places, projected, masked, given
        self.states = len(sweep.step.new)

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return multipliers of the old state, (K, R, H) each, and those of the gates, (K, R, slots x H)."""
        d, rest = list(arguments[: self.states]), list(arguments[self.states :])
        if self.given:
            d[0] = d[0] + rest.pop(0)
        held = d
        if self.masked:
            mask = rest.pop(0)
            d, held = [each * mask for each in d], [each * (1 - mask) for each in d]
        coefficients, rest = rest[: len(self.places)], rest[len(self.places) :]
        weight = rest.pop(0)
        if self.projected:
            d[0] = d[0] @ rest.pop(0)
        gates: dict[int, Tensor] = {}
        old: dict[int, Tensor] = {}
        for (kind, k, place), each in zip(self.places, coefficients, strict=True):
            if kind == "new":
                d[place] = d[place] + d[k] * each
            elif kind == "gates":
                gates[place] = gates[place] + d[k] * each if place in gates else d[k] * each
            else:
                old[place] = old[place] + d[k] * each if place in old else d[k] * each
        zero = torch.zeros_like(next(iter(gates.values())))
        slots = [gates.get(j, zero) for j in range(self.slots.slots)]
        to_hidden = torch.cat(slots[self.slots.hidden], -1) @ weight
        new = [old[r] if r in old else torch.zeros_like(each) for r, each in enumerate(d)]
        new[0] = new[0] + to_hidden if 0 in old else to_hidden
        if self.masked:
            new = [a + b for a, b in zip(new, held, strict=True)]
        return *new, torch.cat(slots[self.slots.input], -1)


def run_recurrence(
    name: str,
    sweep: DerivedSweep,
    steps: Recurrence,
    gates: Tensor,
    mask: Tensor | None,
    state: State,
) -> tuple[Left, State]:
    """Run a recurrence of samples or references; return what it leaves and its result."""
    weight, bias = fused(steps.hidden)
    projection = steps.projection
    weights = [weight.T]
    if sweep.joined and bias is not None:
        gates = gates + bias
    elif bias is not None:
        weights.append(bias)
    if projection is not None:
        weights.append(projection.weight.detach().T)
        if projection.bias is not None:
            weights.append(projection.bias.detach())
    body = StepBody(sweep, biased=bias is not None, projected=projection is not None, masked=mask is not None)
    sequences = [gates] if mask is None else [gates, mask]
    finals, outputs = scan(name, body, state, sequences, weights, reverse=steps.reverse)
    before = [_before(first, each, reverse=steps.reverse) for first, each in zip(state, outputs, strict=True)]
    # All steps at once, as rows: a cell knows no dimension of time.
    gates, *before = (each.flatten(0, 1) for each in (gates, *before))
    hidden = before[0] @ weight.T
    if sweep.joined:
        made = sweep.forward(gates + hidden, None, *before)
    else:
        made = sweep.forward(gates, hidden if bias is None else hidden + bias, *before)
    steps_and_rows = outputs[0].shape[:2]
    kept = tuple(torch.unflatten(each, 0, steps_and_rows) for each in made[len(state) :])
    return Left(kept, mask), (outputs[0], *finals)


def _before(first: Tensor, after: Tensor, *, reverse: bool) -> Tensor:
    """Return the states before each step, of those after each."""
    parts = [after[1:], first[None]] if reverse else [first[None], after[:-1]]
    return torch.cat(parts)


def link_recurrence(
    rows: Rows,
    x: Left,
    x0: Left,
    outers: Outers,
    name: str,
    sweep: DerivedSweep,
    steps: Recurrence,
    gates: Tensor,
    mask: Tensor | None,
    state: State,
) -> State:
    """Link a recurrence of pairs."""
    link = TurnedRecurrence(name, sweep, steps, x, x0, rows, outers[0] if outers else 1)
    size = state[0].shape[-1]
    result = (
        gates.new_zeros(gates.shape[0], gates.shape[1], size),
        *(torch.zeros_like(each) for each in state),
    )
    linked: State = LinkedPairs.apply(link, result, gates, *state)  # type: ignore[no-untyped-call]
    return linked


class TurnedRecurrence(NamedTuple):
    """One call of a recurrence by samples and by references."""

    name: str
    sweep: DerivedSweep
    steps: Recurrence
    x: Left
    x0: Left
    rows: Rows
    outer: int

    def backward(self, d_out: Tensor | None, d_state: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Take multipliers of outputs (T, P, H) and last states (P, H) to those of gates and first states."""
        sweep = self.sweep
        facing = [self._facing(a, b) for a, b in zip(self.x.kept, self.x0.kept, strict=True)]
        places, coefficients = _coefficients(sweep, facing)
        coefficients = [self._rows(each) for each in coefficients]
        weight, _ = fused(self.steps.hidden)
        size = weight.shape[0] // self.steps.gates
        pairs = coefficients[0].shape[1]
        widths = [weight.shape[1], *[size] * (len(d_state) - 1)]
        lead = (self.rows.outputs, pairs)
        states = [
            weight.new_zeros(*lead, width) if each is None else self._split(each, 0)
            for each, width in zip(d_state, widths, strict=True)
        ]
        mask, projection = self._mask(), self.steps.projection
        body = TurnBody(
            sweep,
            places,
            projected=projection is not None,
            masked=mask is not None,
            given=d_out is not None,
        )
        sequences = [] if d_out is None else [self._split(d_out, 1)]
        if mask is not None:
            sequences.append(mask)
        weights = [weight] + ([] if projection is None else [projection.weight.detach()])
        finals, (gates,) = scan(
            f"{self.name}.back",
            body,
            states,
            [*sequences, *coefficients],
            weights,
            reverse=not self.steps.reverse,
        )
        return self._join(gates, 1), [self._join(each, 0) for each in finals]

    def _facing(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Bring what both kept, (T, B, F), into shapes that broadcast to (T, n, outer, M, inner, F)."""
        pairing = self.rows.pairing
        inner = a.shape[1] // pairing.samples // self.outer
        a = torch.unflatten(a, 1, (1, self.outer, pairing.samples, inner))
        shape = (self.outer, pairing.references, pairing.samples if pairing.own else 1, inner)
        return a, torch.unflatten(b, 1, shape).movedim(2, 1)

    def _rows(self, each: Tensor) -> Tensor:
        """Bring coefficients of all pairs to (T, R, F)."""
        _, n, m = self.rows.lead
        shape = list(each.shape)
        shape[1], shape[3] = n, m
        if shape[2] == 1:
            shape[2] = self.outer
        return each.expand(shape).flatten(1, 4)

    def _mask(self) -> Tensor | None:
        """Return the mean of both masks, (T, R, 1), or None."""
        if self.x.mask is None or self.x0.mask is None:
            return None
        dtype = self.x.kept[0].dtype
        a, b = self._facing(self.x.mask.to(dtype), self.x0.mask.to(dtype))
        return self._rows((a + b) / 2)

    def _split(self, d: Tensor, place: int) -> Tensor:
        """Take (…, P, H), P being outer x K x N x M x inner, to (…, K, R, H)."""
        if self.outer == 1:
            return torch.unflatten(d, place, (self.rows.outputs, -1))
        d = torch.unflatten(d, place, (self.outer, *self.rows.lead, -1))
        return d.movedim((place + 1, place + 2), (place, place + 1)).flatten(place + 1, place + 4)

    def _join(self, d: Tensor, place: int) -> Tensor:
        if self.outer == 1:
            return d.flatten(place, place + 1)
        _, n, m = self.rows.lead
        d = torch.unflatten(d, place + 1, (n, self.outer, m, -1))
        return d.movedim((place, place + 1), (place + 1, place + 2)).flatten(place, place + 4)


def _coefficients(
    sweep: DerivedSweep, pairs: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[Place], list[Tensor]]:
    """Return what new states' multipliers are taken times, for what, and the numbers, (T, n, outer, M, …)."""
    like = pairs[0][0]
    places: list[Place] = []
    numbers: list[Tensor] = []
    facing = dict(zip(sweep.step.kept, pairs, strict=True))
    for k, reached in sweep.step.backward(facing, anew=False):
        for kind in ("new", "gates", "old"):
            for place, found in getattr(reached, kind).items():
                each = whole(found).to(like.dtype)
                if each.dim() != like.dim():
                    # What no atom lies on is a number, the same at all steps.
                    width = each.shape[-1] if each.dim() else 1
                    each = each.expand(like.shape[0], *[1] * (like.dim() - 2), width)
                places.append(Place(kind, k, place))
                numbers.append(each)
    return places, numbers


class LinkedPairs(torch.autograd.Function):
    """Stands for a recurrence in the autograd graph of the pairs."""

    @staticmethod
    def forward(ctx: Any, link: TurnedRecurrence, result: State, *inputs: Tensor) -> Any:
        """Hand on what has the shapes of what the recurrence gives."""
        ctx.link = link
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Sweep, unless nothing came back."""
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(grads))
        with torch.no_grad():
            d_gates, d_state = ctx.link.backward(grads[0], grads[1:])
        return None, None, d_gates, *d_state
