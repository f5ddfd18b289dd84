"""Where attributions are lost: what flows into each operation of a model against what flows out of it.

With multipliers m at every tensor of a run, an operation with operands x and result y passes

    Σ m_y · Δy − Σ m_x · Δx

on to nobody, m_x being what comes back through this operation alone. Summed over all operations that is the
additivity error of the whole model: the sum telescopes.

A batch of samples and references runs twice, the second time with both halves exchanged. The difference of
the two runs is Δ wherever the batch may be; multipliers are those of one half, and zero in the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.observe import observe
from passes.user_code.randomness import random_state_kept
from rewriter.diagnosis.followed import Flow, Followed, Ruled, dot
from rewriter.diagnosis.recorded import Recorded

Half = Literal["samples", "references"]
#: What rounding leaves of what flows, beside the largest flow: cancellation inside of an operation.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
# Roundings of the numbers of a call and of its differences, in units of the dtype.
_ROUNDINGS = 32


@dataclass
class Gaps:
    """What one sample's attributions, averaged over the references, lose.

    Args:
        flows: each call, in the order in which they ran, flows per output.
        total: for each output, the sum of the attributions less what they have to sum to.
        scale: the largest output.
        double: whether outputs are in float64.

    """

    flows: list[Flow]
    total: list[float]
    scale: float
    double: bool

    def rounding(self, flow: Flow, k: int) -> float:
        """Return what a call may lose of an output by rounding alone."""
        least = ROUNDING[torch.float64 if flow.eps < torch.finfo(torch.float32).eps else torch.float32]
        return least * self.changes[k] + _ROUNDINGS * flow.eps * flow.size[k]

    @cached_property
    def changes(self) -> list[float]:
        """The largest flow of each output."""
        return [
            max(
                (
                    abs(each)
                    for flow in self.flows
                    for each in (flow.flows_in[k], flow.flows_out[k])
                    if math.isfinite(each)
                ),
                default=0.0,
            )
            for k in range(len(self.total))
        ]

    def loses(self, flow: Flow, tolerance: float = 0.0) -> bool:
        """Whether a call loses more than rounding of any output.

        Args:
            flow: of the call.
            tolerance: what it may lose besides, relative to the largest flow of the output.

        """
        # Not 'greater than', which is False for NaN.
        return not all(
            abs(b - a) <= self.rounding(flow, k) + tolerance * self.changes[k]
            for k, (a, b) in enumerate(zip(flow.flows_in, flow.flows_out, strict=True))
        )

    def in_doubt(self) -> bool:
        """Whether something is lost that may be more than rounding."""
        least = ROUNDING[torch.float64 if self.double else torch.float32]
        return not all(
            abs(b - a) <= least * self.changes[k]
            for flow in self.flows
            for k, (a, b) in enumerate(zip(flow.flows_in, flow.flows_out, strict=True))
        )


def gaps_of_sample(
    model: nn.Module,
    select: Callable[[Any], Any],
    sample: list[Tensor],
    references: list[Tensor],
    ruled: Ruled,
    half: Half,
    most: int,
    islands: Iterable[str] | None = None,
) -> Gaps:
    """Follow the multipliers of one sample's outputs back to its inputs.

    Args:
        model: with parameters that need no gradients.
        select: picks the tensor to explain.
        sample: one row of each input.
        references: the background.
        ruled: gives results the multipliers of a rule.
        half: where multipliers are read; operations without a rule have other gradients at the sample than
            at the references.
        most: so many outputs at most, those that change most.
        islands: of a decomposed model, the names of the modules that are still the user's code; None for a
            model that is not decomposed.

    """
    rows = references[0].shape[0]
    both = [torch.cat([a.expand(rows, *a.shape[1:]), b]) for a, b in zip(sample, references, strict=True)]
    exchanged = Recorded(islands or ())
    with torch.enable_grad():
        observe(model, exchanged, tuple(torch.cat(each.chunk(2)[::-1]) for each in both))
        sign = 1 if half == "samples" else -1
        run = Followed(exchanged, sign, ruled, islands or (), decomposed=islands is not None)
        leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in both]
        with random_state_kept():
            output = select(
                observe(model, run, tuple(each.clone() if each.requires_grad else each for each in leaves))
            )
    run.finish()
    if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != 2 * rows:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise RewriteError(
            f"expected an output with the batch of {2 * rows} in dimension 0, got {got}; pass output=... to "
            "say which part of what the model returns is to be diagnosed"
        )
    flat = output.reshape(2 * rows, -1)
    change = (flat[:rows] - flat[rows:]).detach().mean(0)
    chosen = change.abs().argsort(descending=True)[:most].tolist()
    seeds = slice(None, rows) if half == "samples" else slice(rows, None)
    wanted = [each for each in leaves if each.requires_grad]
    total = []
    for k in chosen:
        for flow in run.flows:
            flow.begin_output()
        run.looked_up = 0.0
        given = 0.0
        if flat.requires_grad:
            seed = torch.zeros_like(flat)
            seed[seeds, k] = 1 / rows
            ends = [*wanted, *run.cuts.ends]
            found = torch.autograd.grad(flat, ends, seed, retain_graph=True, allow_unused=True)
            for leaf, m in zip(wanted, found[: len(wanted)], strict=True):
                if m is not None:
                    a, b = leaf.detach().chunk(2)
                    given += dot(m, torch.cat([a - b, a - b]))
        total.append(given + run.looked_up - float(change[k]))
    return Gaps(run.flows, total, float(flat.detach().abs().max()), flat.dtype == torch.float64)
