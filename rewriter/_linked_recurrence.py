"""A recurrence as one linked operation: a fast forward pass, and a sweep of multipliers back in time.

Slopes and means depend on forward values only. What is sequential is, per step, one product of the
multipliers with the hidden weights and a few elementwise operations on rows that fit in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.gates import SplitGates
from passes.recurrence import Recurrence
from rewriter._linked import Pairing, Tape
from rewriter._sweeps import CellSweep, Kept

Optional = Tensor | None


class GatesToBe(NamedTuple):
    """The argument of a recurrence whose input weights take part in the sweep."""

    x: Tensor
    weights: nn.Module


class Weights(NamedTuple):
    """The weights of a recurrence with each gate's rows scaled for the sweep.

    Args:
        hidden: (gates x H, H_out), its rows in torch's order.
        hidden_bias: or None.
        projection: the Linear behind the cell, or None.
        scale: (gates x H,), one number per row.

    """

    hidden: Tensor
    hidden_bias: Optional
    projection: nn.Linear | None
    scale: Tensor


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
    sweep: CellSweep, steps: Recurrence, gates: Tensor | GatesToBe, mask: Optional, state: tuple[Tensor, ...]
) -> tuple[Forward, tuple[Tensor, ...]]:
    """Run a recurrence and keep what the sweep needs; returns that, and the recurrence's own result."""
    weights = _weights(sweep, steps)
    if isinstance(gates, GatesToBe):
        weight, bias = fused(gates.weights)
        gates = nn.functional.linear(gates.x, weight, bias)
    gates = gates * weights.scale
    length = gates.shape[0]
    outputs: list[Tensor] = [state[0]] * length
    noted: list[tuple[Tensor, ...]] = [()] * length
    for t in range(length - 1, -1, -1) if steps.reverse else range(length):
        h_gates = nn.functional.linear(state[0], weights.hidden, weights.hidden_bias)
        new, noted[t] = sweep.advance(gates[t], h_gates, state)
        if weights.projection is not None:
            projection = weights.projection
            new = (nn.functional.linear(new[0], projection.weight, projection.bias), *new[1:])
        if mask is not None:
            new = tuple(torch.where(mask[t], a, b) for a, b in zip(new, state, strict=True))
        state = new
        outputs[t] = state[0]
    kept = sweep.keep([torch.stack(each) for each in zip(*noted, strict=True)])
    return Forward(kept, mask), (torch.stack(outputs), *state)


def _weights(sweep: CellSweep, steps: Recurrence) -> Weights:
    weight, bias = fused(steps.hidden)
    size = weight.shape[0] // len(sweep.scales)
    scale = weight.new_tensor(sweep.scales).repeat_interleave(size)
    return Weights(
        weight * scale.unsqueeze(-1), None if bias is None else bias * scale, steps.projection, scale
    )


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

    def backward(self, d_out: Optional, d_state: list[Optional]) -> tuple[Tensor, list[Tensor]]:
        """Take multipliers of the outputs and final states to those of the input and initial states.

        Args:
            d_out: (K, n, T, B, H) or None.
            d_state: each (K, n, B, H) or None.

        Returns:
            (T, K, n, B, I) and each (K, n, B, H).

        """
        sweep, pairing, batch = self.sweep, self.pairing, self.batch
        hidden, _ = fused(self.steps.hidden)
        size = hidden.shape[0] // len(sweep.scales)
        w_hidden = hidden.view(-1, size, hidden.shape[1])
        if sweep.hidden_order:
            w_hidden = w_hidden[list(sweep.hidden_order)]
        w_hidden = w_hidden.reshape(-1, hidden.shape[1])
        projection = None if self.steps.projection is None else self.steps.projection.weight
        kept, kept0 = self._paired()
        length = kept.before.shape[0]
        lead = (pairing.outputs, pairing.count, batch)
        sizes = [hidden.shape[1], *[size] * (len(d_state) - 1)]
        d = [
            hidden.new_zeros(*lead, width) if each is None else each.expand(*lead, width).clone()
            for each, width in zip(d_state, sizes, strict=True)
        ]
        rows = lead[0] * lead[1] * lead[2]
        out = hidden.new_empty(rows, sweep.gates * size)
        shaped = out.view(*lead, sweep.gates, size)
        to_hidden = out.view(rows, sweep.gates, size)[:, sweep.hidden_gates].flatten(1)
        to_input = out.view(rows, sweep.gates, size)[:, sweep.input_gates].flatten(1)
        into = len(sweep.scales) * size if self.input_weight is None else self.input_weight.shape[1]
        d_x = hidden.new_empty(length, rows, into)
        mask = self._mask()
        d_cell = hidden.new_empty(*lead, size) if projection is not None else None
        for t in range(length) if self.steps.reverse else range(length - 1, -1, -1):
            if d_out is not None:
                d[0].add_(d_out[:, :, t])
            held = None
            if mask is not None:
                held = [each * (1 - mask[t]) for each in d]
                d = [each.mul_(mask[t]) for each in d]
            step_kept, step_kept0 = _at(kept, t), _at(kept0, t)
            slopes = sweep.slopes(step_kept, step_kept0)
            slopes = slopes.view(lead[1], batch, -1, size)
            passed = None
            if step_kept.passed is not None and step_kept0.passed is not None:
                passed = (step_kept.passed + step_kept0.passed).view(lead[1], batch, -1, size)
            if projection is not None and d_cell is not None:
                torch.mm(d[0].view(rows, -1), projection, out=d_cell.view(rows, -1))
                sweep.step(slopes, passed, [d_cell, *d[1:]], shaped)
            else:
                sweep.step(slopes, passed, d, shaped)
            d_h = d[0].view(rows, -1)
            if sweep.direct:
                d_h.addmm_(to_hidden, w_hidden)
            else:
                torch.mm(to_hidden, w_hidden, out=d_h)
            if self.input_weight is None:
                d_x[t].copy_(to_input)
            else:
                torch.mm(to_input, self.input_weight, out=d_x[t])
            if held is not None:
                d = [each.add_(kept_back) for each, kept_back in zip(d, held, strict=True)]
        return d_x.view(length, *lead, into), d

    def _paired(self) -> tuple[Kept, Kept]:
        """Return what both runs kept, per time step in shapes that broadcast to (n, M, q, F)."""
        fields = zip(Kept._fields, self.x.kept, self.x0.kept, strict=True)
        both = {name: self._rows(a, b) for name, a, b in fields if a is not None and b is not None}
        return Kept(**{k: a for k, (a, _) in both.items()}), Kept(**{k: b for k, (_, b) in both.items()})

    def _rows(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pairing = self.pairing
        a = torch.unflatten(a, 1, (1, pairing.samples, -1))
        shape = (pairing.references, pairing.samples if pairing.own else 1, -1)
        return a, torch.unflatten(b, 1, shape)[:, pairing.begin : pairing.end]

    def _mask(self) -> Optional:
        """Return the mean of both masks, (T, n, B, 1); 1 where a step counts for sample and reference."""
        if self.x.mask is None and self.x0.mask is None:
            return None
        like, like0 = self.x.kept.before[..., :1], self.x0.kept.before[..., :1]
        mask = torch.ones_like(like) if self.x.mask is None else self.x.mask.to(like)
        mask0 = torch.ones_like(like0) if self.x0.mask is None else self.x0.mask.to(like0)
        a, b = self._rows(mask, mask0)
        return ((a + b) / 2).flatten(2, 3)


def _at(kept: Kept, t: int) -> Kept:
    before, after, partner, passed = kept
    return Kept(
        before[t], after[t], None if partner is None else partner[t], None if passed is None else passed[t]
    )


class LinkedRecurrence(torch.autograd.Function):
    """Stands for a recurrence in the samples' autograd graph."""

    @staticmethod
    def forward(ctx: Any, link: RecurrentLink, result: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        """Hand on what the recurrence gave."""
        ctx.link = link
        ctx.set_materialize_grads(False)
        return tuple(each.view_as(each) for each in result)

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
    forward, result = run(sweep, steps, gates, mask, state)
    if tape.pairing is None:
        tape.add(name, forward)
        return result
    x = gates.x if isinstance(gates, GatesToBe) else gates
    weight = fused(gates.weights)[0] if isinstance(gates, GatesToBe) else None
    batch = x.shape[1]
    link = RecurrentLink(sweep, steps, forward, tape.next(name), tape.pairing, weight, batch)
    linked: tuple[Tensor, ...] = LinkedRecurrence.apply(link, result, x, *state)  # type: ignore[no-untyped-call]
    return linked
