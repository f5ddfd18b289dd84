"""A recurrence as one linked operation: a fast forward pass, and a sweep of multipliers back in time.

Slopes and means depend on forward values only. What is sequential is, per step, one product of the
multipliers with the hidden weights and a few elementwise operations on rows that fit in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.recurrent.gates import OrderedGates, SplitGates
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.compiled import compiled_sweep
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.sweep import Kept, State, Sweep, Swept, fused
from rewriter.engine.sweeps.two_players.asked import has_two_players
from rewriter.engine.sweeps.two_players.sweep import TwoPlayerSweep
from rewriter.engine.tape import Pairing, Tape
from rewriter.engine.tiles import spans

Optional = Tensor | None
# Bytes of the gates' multipliers that wait for the product with the input weights.
_TOGETHER = 500_000
_T = TypeVar("_T")


class JoinedLinears(nn.Module):
    """Several Linears of one input as one.

    Args:
        linears: all with a bias, or none.

    Example:
        >>> JoinedLinears([nn.Linear(3, 2), nn.Linear(3, 4)])(torch.zeros(5, 3)).shape
        torch.Size([5, 6])

    """

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def forward(self, x: Tensor) -> Tensor:
        """Return what all give, one after the other."""
        return torch.cat([each(x) for each in self.linears], -1)


class GatesToBe(NamedTuple):
    """The argument of a recurrence whose input weights take part in the sweep."""

    x: Tensor
    weights: nn.Module

    def made(self) -> Tensor:
        """Return the gates."""
        return nn.functional.linear(self.x, *fused(self.weights))


def can_fuse(module: nn.Module) -> bool:
    """Whether :func:`fused` understands ``module``."""
    return type(module) in (nn.Linear, SplitGates, OrderedGates, JoinedLinears)


class Forward(NamedTuple):
    """What one run of a recurrence leaves.

    Args:
        sweep: what ran it, and can turn it back.
        kept: for the sweep.
        mask: (T, B, 1) or None.

    """

    sweep: Sweep
    kept: Kept
    mask: Optional


@torch.no_grad()
def run(
    sweep: Sweep,
    steps: Recurrence,
    gates: Tensor | GatesToBe,
    mask: Optional,
    state: State,
) -> tuple[Forward, State]:
    """Run a recurrence and keep what the sweep needs; returns that, and the recurrence's own result."""
    if isinstance(gates, GatesToBe):
        gates = gates.made()
    projection = steps.projection
    length = gates.shape[0]
    # What intercepts torch's functions elsewhere in the model has no business in this loop.
    with torch._C.DisableTorchFunction():
        outputs: list[Tensor] = [state[0]] * length
        recording = sweep.record(steps, gates)
        for t in range(length - 1, -1, -1) if steps.reverse else range(length):
            new = recording.advance(t, state)
            if projection is not None:
                new = (nn.functional.linear(new[0], projection.weight, projection.bias), *new[1:])
            if mask is not None:
                new = tuple(torch.where(mask[t], a, b) for a, b in zip(new, state, strict=True))
            state = new
            outputs[t] = state[0]
        return Forward(sweep, recording.kept(), mask), (torch.stack(outputs), *state)


@dataclass
class RecurrentLink:
    """One call of a recurrence by the samples, with its counterpart by the references."""

    steps: Recurrence
    x: Forward
    x0: Forward
    pairing: Pairing
    input_weight: Optional
    batch: int
    outer: int = 1

    def backward(self, d_out: Optional, d_state: list[Optional]) -> tuple[Tensor, list[Tensor]]:
        """Take multipliers of the outputs and final states to those of the input and initial states.

        Args:
            d_out: (K, n, T, B, H) or None.
            d_state: each (K, n, B, H) or None.

        Returns:
            (T, K, n, B, I) and each (K, n, B, H).

        """
        sweep, slots = self.x.sweep, self.x.sweep.slots
        lead = (self.pairing.outputs, self.pairing.count, self.batch)
        rows = lead[0] * lead[1] * lead[2]
        w_hidden, size = self._hidden_weight()
        projection = None if self.steps.projection is None else self.steps.projection.weight
        widths = [w_hidden.shape[1], *[size] * (len(d_state) - 1)]
        d = [
            w_hidden.new_zeros(*lead, width) if each is None else each.expand(*lead, width).clone()
            for each, width in zip(d_state, widths, strict=True)
        ]
        d_h = d[0].view(rows, -1)
        d_cell = d if projection is None else [w_hidden.new_empty(*lead, size), *d[1:]]
        length = self.x.kept[0].shape[0]
        # Multipliers of the gates of a few steps go through the input weights together.
        together = max(1, min(length, _TOGETHER // max(1, rows * slots.slots * size * d_h.element_size())))
        gates = w_hidden.new_empty(together, rows, slots.slots, size)
        to_hidden = gates[:, :, slots.hidden].flatten(2).unbind(0)
        to_input = gates[:, :, slots.input].flatten(2)
        into = to_input.shape[2] if self.input_weight is None else self.input_weight.shape[1]
        d_x = w_hidden.new_empty(length, rows, into)
        d_out_at = None if d_out is None else d_out.unbind(2)
        mask = self._mask()
        step = sweep.stepper(self._swept(), d_cell, gates, self._ordered)
        for begin, end in self._ordered(list(spans(length, together))):
            for t in self._ordered(range(begin, end)):
                if d_out_at is not None:
                    d[0].add_(d_out_at[t])
                if mask is not None:
                    held = [each * (1 - mask[t]) for each in d]
                    for each in d:
                        each.mul_(mask[t])
                if projection is not None:
                    torch.mm(d_h, projection, out=d_cell[0].view(rows, -1))
                step(t, t - begin)
                if sweep.direct:
                    d_h.addmm_(to_hidden[t - begin], w_hidden)
                else:
                    torch.mm(to_hidden[t - begin], w_hidden, out=d_h)
                if mask is not None:
                    for each, back in zip(d, held, strict=True):
                        each.add_(back)
            if self.input_weight is None:
                d_x[begin:end] = to_input[: end - begin]
            else:
                flat = to_input[: end - begin].flatten(0, 1)
                torch.mm(flat, self.input_weight, out=d_x[begin:end].view(-1, into))
        return d_x.view(length, *lead, into), d

    def _ordered(self, steps: Sequence[_T]) -> Iterable[_T]:
        """Put what is in the order of time into the order of the sweep."""
        return steps if self.steps.reverse else reversed(steps)

    def _swept(self) -> Swept:
        pairing = self.pairing
        assert type(self.x.sweep) is type(self.x0.sweep), "samples and references ran by different sweeps"
        samples, outer = self._batch()
        rows = samples * outer
        if not rows or self.batch % rows:
            raise RewriteError(
                f"{self.steps.name}: expected a batch of {rows} rows or a multiple of it, got {self.batch}: "
                "does the layer read another dimension as the batch (batch_first)?"
            )
        return Swept(
            self.x.kept,
            self.x0.kept,
            self._rows,
            pairing.outputs,
            pairing.count,
            self.batch,
            samples,
            outer,
        )

    def _hidden_weight(self) -> tuple[Tensor, int]:
        """Return the hidden weight with its gates in the sweep's order, and the size of the cell."""
        weight, _ = fused(self.steps.hidden)
        size = weight.shape[0] // self.steps.gates
        order = self.x.sweep.slots.order
        if order:
            weight = weight.view(-1, size, weight.shape[1])[list(order)].flatten(0, 1)
        return weight, size

    def _batch(self) -> tuple[int, int]:
        """Return the rows of the batch and what lies outside of it; where all is in place, neither counts."""
        return (1, 1) if self.pairing.aligned else (self.pairing.samples, self.outer)

    def _rows(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Bring what both runs kept, (T, B, F), into shapes that broadcast to (T, n, o, M, q, F)."""
        return self.pairing.steps(a, b, self.outer)

    def _mask(self) -> Optional:
        """Return the mean of both masks, (T, n, B, 1); 1 where a step counts for sample and reference."""
        if self.x.mask is None and self.x0.mask is None:
            return None
        like, like0 = self.x.kept[0][..., :1], self.x0.kept[0][..., :1]
        mask = torch.ones_like(like) if self.x.mask is None else self.x.mask.to(like)
        mask0 = torch.ones_like(like0) if self.x0.mask is None else self.x0.mask.to(like0)
        a, b = self._rows(mask, mask0)
        return ((a + b) / 2).flatten(2, 4)


class LinkedRecurrence(torch.autograd.Function):
    """Stands for a recurrence in the samples' autograd graph."""

    @staticmethod
    def forward(ctx: Any, link: RecurrentLink, result: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        """Hand on what the recurrence gave."""
        ctx.link = link
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> tuple[Optional, ...]:
        """Sweep, unless nothing came back."""
        if all(grad is None for grad in grads):
            return (None,) * (2 + len(grads))
        return (None, None, *_Sweep.apply(ctx.link, *grads))  # type: ignore[no-untyped-call]


class _Sweep(torch.autograd.Function):
    """The sweep, as an operation that vmap hands the whole batch."""

    @staticmethod
    def forward(link: RecurrentLink, *grads: Optional) -> Any:
        raise AssertionError("runs under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, link: RecurrentLink, *grads: Optional) -> Any:
        """Run the sweep on all of vmap's batch."""
        pairing = link.pairing
        split = (pairing.outputs, pairing.count)
        spread = [
            None if grad is None else torch.unflatten(_front(grad, dim, info.batch_size), 0, split)
            for grad, dim in zip(grads, in_dims[1:], strict=True)
        ]
        with torch.no_grad():
            d_x, d = link.backward(spread[0], spread[1:])
        return (d_x.flatten(1, 2), *(each.flatten(0, 1) for each in d)), (1, *(0 for _ in d))


def _front(grad: Tensor, dim: int | None, size: int) -> Tensor:
    return grad.expand(size, *grad.shape) if dim is None else grad.movedim(dim, 0)


def linked_recurrence(
    derived: DerivedSweep,
    steps: Recurrence,
    name: str,
    tape: Tape,
    gates: Tensor | GatesToBe,
    mask: Optional,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Run a recurrence for the references, or for the samples linked to them."""
    if tape.linking is not None:
        made = gates.made() if isinstance(gates, GatesToBe) else gates
        return cast("tuple[Tensor, ...]", tape.linking.recurrence(name, derived, steps, made, mask, state))
    sweep = TwoPlayerSweep(derived) if has_two_players() else compiled_sweep(steps, state[0]) or derived
    forward, (outputs, *finals) = run(sweep, steps, gates, mask, state)
    # The model's code may write to the final states, which are kept for the sweep.
    result = (outputs, *(each.clone() for each in finals))
    if tape.pairing is None:
        tape.add(name, forward)
        return result
    x = gates.x if isinstance(gates, GatesToBe) else gates
    weight = fused(gates.weights)[0] if isinstance(gates, GatesToBe) else None
    batch = x.shape[1]
    forward0 = tape.next(name, forward)
    link = RecurrentLink(steps, forward, forward0, tape.pairing, weight, batch, tape.outer(0))
    linked: tuple[Tensor, ...] = LinkedRecurrence.apply(link, result, x, *state)  # type: ignore[no-untyped-call]
    return linked
