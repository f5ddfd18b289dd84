"""A recurrence as one linked operation: a fast forward pass, and a sweep of multipliers back in time.

Slopes and means depend on forward values only. What is sequential is, per step, one product of the
multipliers with the hidden weights and a few elementwise operations on rows that fit in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from passes.recurrent.gates import SplitGates
from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.compiled import CompiledRecording, CompiledSteps, compiled_cell, faded
from rewriter.engine.sweeps.sweep import CellSweep, Hidden, Kept
from rewriter.engine.tape import Pairing, Tape
from rewriter.engine.tiles import spans

Optional = Tensor | None
# Bytes of a core's cache that slopes of several steps may take.
_CACHE = 1_500_000
# Bytes of the gates' multipliers that wait for the product with the input weights.
_TOGETHER = 500_000
# After so many steps, torch's operations clear multipliers that have faded away.
_CLEAN = 4
_T = TypeVar("_T")
# Turns the multipliers of the state back by step t and puts those of its gates into a place.
Step = Callable[[int, int], None]


class GatesToBe(NamedTuple):
    """The argument of a recurrence whose input weights take part in the sweep."""

    x: Tensor
    weights: nn.Module


def fused(module: nn.Module) -> tuple[Tensor, Optional]:
    """Return the weight and bias of a Linear, or of one Linear per gate put together.

    Example:
        >>> weight, bias = fused(nn.Linear(2, 3, bias=False))
        >>> weight.shape, bias
        (torch.Size([3, 2]), None)

    """
    linears = [each for each in module.modules() if isinstance(each, nn.Linear)]
    weights = [each.weight.detach() for each in linears]
    biases = [each.bias.detach() for each in linears if each.bias is not None]
    if len(weights) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def can_fuse(module: nn.Module) -> bool:
    """Whether :func:`fused` understands ``module``."""
    return type(module) in (nn.Linear, SplitGates)


class Forward(NamedTuple):
    """What one run of a recurrence leaves.

    Args:
        kept: for the sweep.
        mask: (T, B, 1) or None.

    """

    kept: Kept
    mask: Optional


@torch.no_grad()
def run(
    sweep: CellSweep,
    steps: Recurrence,
    gates: Tensor | GatesToBe,
    mask: Optional,
    state: tuple[Tensor, ...],
) -> tuple[Forward, tuple[Tensor, ...]]:
    """Run a recurrence and keep what the sweep needs; returns that, and the recurrence's own result."""
    weight, bias = fused(steps.hidden)
    scale = weight.new_tensor(sweep.scales).repeat_interleave(weight.shape[0] // len(sweep.scales))
    hidden = Hidden((weight * scale.unsqueeze(-1)).T, None if bias is None else bias * scale)
    if isinstance(gates, GatesToBe):
        gates = nn.functional.linear(gates.x, *fused(gates.weights))
    gates = gates * scale
    if not sweep.apart and hidden.bias is not None:
        gates += hidden.bias
    projection = steps.projection
    length = gates.shape[0]
    # What intercepts torch's functions elsewhere in the model has no business in this loop.
    with torch._C.DisableTorchFunction():
        at = gates.unbind(0)
        outputs: list[Tensor] = [state[0]] * length
        size = scale.shape[0] // len(sweep.scales)
        cell = compiled_cell(sweep.compiled, gates, size)
        recording = (
            sweep.record(length, gates.shape[1], size, gates)
            if cell is None
            else CompiledRecording(cell, gates, size)
        )
        for t in range(length - 1, -1, -1) if steps.reverse else range(length):
            new = recording.advance(t, at[t], hidden, state)
            if projection is not None:
                new = (nn.functional.linear(new[0], projection.weight, projection.bias), *new[1:])
            if mask is not None:
                new = tuple(torch.where(mask[t], a, b) for a, b in zip(new, state, strict=True))
            state = new
            outputs[t] = state[0]
    return Forward(recording.kept(), mask), (torch.stack(outputs), *state)


@dataclass
class RecurrentLink:
    """One call of a recurrence by the samples, with its counterpart by the references."""

    sweep: CellSweep
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
        sweep, batch = self.sweep, self.batch
        lead = (self.pairing.outputs, self.pairing.count, batch)
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
        length = self.x.kept.before.shape[0]
        # Multipliers of the gates of a few steps go through the input weights together.
        together = max(1, min(length, _TOGETHER // max(1, rows * sweep.gates * size * d_h.element_size())))
        gates = w_hidden.new_empty(together, rows, sweep.gates, size)
        to_hidden = gates[:, :, sweep.hidden_gates].flatten(2).unbind(0)
        to_input = gates[:, :, sweep.input_gates].flatten(2)
        into = to_input.shape[2] if self.input_weight is None else self.input_weight.shape[1]
        d_x = w_hidden.new_empty(length, rows, into)
        d_out_at = None if d_out is None else d_out.unbind(2)
        mask = self._mask()
        step = self._compiled(d_cell, gates) or self._eager(d_cell, gates.view(together, *lead, -1, size))
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

    def _compiled(self, d: list[Tensor], gates: Tensor) -> Step | None:
        """Return the steps in C, if that is possible."""
        pairing, kept, kept0 = self.pairing, self.x.kept, self.x0.kept
        cell = compiled_cell(self.sweep.compiled, gates, gates.shape[-1])
        if cell is None or self.outer > 1 or any(part is None for part in (*kept, *kept0)):
            return None
        each = self.batch // pairing.samples
        first = pairing.begin * (self.batch if pairing.own else each)
        counts = (pairing.outputs, pairing.count, self.batch, each)
        x, x0 = (tuple(part for part in run if part is not None) for run in (kept, kept0))
        return CompiledSteps(cell, x, x0, counts, pairing.own, first, d, gates)

    def _eager(self, d: list[Tensor], gates: Tensor) -> Step:
        """Return the steps as torch's operations."""
        slopes = self._slopes(gates.shape[-1])
        targets = [self.sweep.targets(part) for part in gates.unbind(0)]
        least = faded(gates.dtype)

        def step(t: int, place: int) -> None:
            if t % _CLEAN == 0:
                for each in d:
                    torch.hardshrink(each, least, out=each)
            self.sweep.step(next(slopes), d, targets[place])

        return step

    def _hidden_weight(self) -> tuple[Tensor, int]:
        """Return the hidden weight with its gates in the sweep's order, and the size of the cell."""
        weight, _ = fused(self.steps.hidden)
        size = weight.shape[0] // len(self.sweep.scales)
        if self.sweep.hidden_order:
            weight = weight.view(-1, size, weight.shape[1])[list(self.sweep.hidden_order)].flatten(0, 1)
        return weight, size

    def _slopes(self, size: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the slopes of each step, of as many at a time as fit in the cache."""
        kept, kept0 = self._paired()
        length, rows = kept.before.shape[0], (self.pairing.count, self.batch)
        step_bytes = kept.before[0].nbytes * rows[0]
        ahead = max(1, (_CACHE if kept.before.device.type == "cpu" else 64 * _CACHE) // (3 * step_bytes))
        for begin, end in self._ordered(list(spans(length, ahead))):
            x, x0 = _between(kept, begin, end), _between(kept0, begin, end)
            slopes = self.sweep.slopes(x, x0).reshape(end - begin, *rows, -1, size)
            passed = None
            if x.passed is not None and x0.passed is not None:
                passed = (x.passed + x0.passed).reshape(end - begin, *rows, -1, size)
            yield from self._ordered(self.sweep.prepare(slopes, passed))

    def _paired(self) -> tuple[Kept, Kept]:
        """Return what both runs kept, per time step in shapes that broadcast to (n, o, M, q, F)."""
        fields = zip(Kept._fields, self.x.kept, self.x0.kept, strict=True)
        both = {name: self._rows(a, b) for name, a, b in fields if a is not None and b is not None}
        return Kept(**{k: a for k, (a, _) in both.items()}), Kept(**{k: b for k, (_, b) in both.items()})

    def _rows(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pairing = self.pairing
        a = torch.unflatten(a, 1, (1, self.outer, pairing.samples, -1))
        shape = (self.outer, pairing.references, pairing.samples if pairing.own else 1, -1)
        return a, torch.unflatten(b, 1, shape).movedim(2, 1)[:, pairing.begin : pairing.end]

    def _mask(self) -> Optional:
        """Return the mean of both masks, (T, n, B, 1); 1 where a step counts for sample and reference."""
        if self.x.mask is None and self.x0.mask is None:
            return None
        like, like0 = self.x.kept.before[..., :1], self.x0.kept.before[..., :1]
        mask = torch.ones_like(like) if self.x.mask is None else self.x.mask.to(like)
        mask0 = torch.ones_like(like0) if self.x0.mask is None else self.x0.mask.to(like0)
        a, b = self._rows(mask, mask0)
        return ((a + b) / 2).flatten(2, 4)


def _between(kept: Kept, begin: int, end: int) -> Kept:
    return Kept(*(None if each is None else each[begin:end] for each in kept))  # type: ignore[arg-type]


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
    sweep: CellSweep,
    steps: Recurrence,
    name: str,
    tape: Tape,
    gates: Tensor | GatesToBe,
    mask: Optional,
    state: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Run a recurrence for the references, or for the samples linked to them."""
    forward, (outputs, *finals) = run(sweep, steps, gates, mask, state)
    # The model's code may write to the final states, which are kept for the sweep.
    result = (outputs, *(each.clone() for each in finals))
    if tape.pairing is None:
        tape.add(name, forward)
        return result
    x = gates.x if isinstance(gates, GatesToBe) else gates
    weight = fused(gates.weights)[0] if isinstance(gates, GatesToBe) else None
    batch = x.shape[1]
    forward0 = tape.next(name)
    link = RecurrentLink(sweep, steps, forward, forward0, tape.pairing, weight, batch, tape.outer(0))
    linked: tuple[Tensor, ...] = LinkedRecurrence.apply(link, result, x, *state)  # type: ignore[no-untyped-call]
    return linked
