"""The three runs of an explanation: references, samples, and all pairs of them for the backward pass.

Rules need values of samples and references, (M + N) rows; multipliers live on K x N x M pairs. The third run
has a row for each pair and output. Nothing of what it computes is used but its autograd graph, through which
multipliers go back; so what is left of it in a graph that is written down is the backward pass alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.engine.linked_modules import RuleCall, RuleLink
from rewriter.engine.tape import Outers, Pairing


@dataclass(frozen=True)
class Rows:
    """How many rows there are of what.

    Args:
        pairing: samples and references.
        outputs: explained at a time, K.

    """

    pairing: Pairing
    outputs: int

    @property
    def lead(self) -> tuple[Any, Any, Any]:
        """K, N, M: the order in which the rows of the third run lie."""
        return self.outputs, self.pairing.references, self.pairing.samples

    def repeated(self, x: Tensor) -> Tensor:
        """Return rows of samples, (M, *), as those of all pairs and outputs, (K x N x M, *)."""
        return x.expand(*self.lead[:2], *x.shape).flatten(0, 2)

    def split(self, d: Tensor, shape: Sequence[Any], outer: int) -> Tensor:
        """Take multipliers of what pairs left to (K, N, *shape).

        Args:
            d: with the batch of all pairs where the samples have theirs.
            shape: of what samples left.
            outer: size of what is merged with the batch outside of it.

        """
        place = batch_of(shape, d.shape)
        if place is None:
            return d[None, None]
        inner = shape[place] // self.pairing.samples // outer
        d = torch.unflatten(d, place, (outer, *self.lead, inner)).movedim((place + 1, place + 2), (0, 1))
        return d.flatten(place + 2, place + 4)

    def join(self, d: Tensor, shape: Sequence[Any], outer: int) -> Tensor:
        """Take multipliers (K, N, *of samples) to the shape of what pairs have there."""
        place = batch_of(d.shape[2:], shape)
        if place is None:
            return d.sum((0, 1))
        inner = d.shape[place + 2] // self.pairing.samples // outer
        d = torch.unflatten(d, place + 2, (outer, self.pairing.samples, inner))
        return d.movedim((0, 1), (place + 1, place + 2)).flatten(place, place + 4)


def batch_of(samples: Sequence[Any], pairs: Sequence[Any]) -> int | None:
    """Return the dimension in which shapes of samples and of pairs differ, None if there is none."""
    return next((k for k, (a, b) in enumerate(zip(samples, pairs, strict=True)) if a != b), None)


class LookedUp(NamedTuple):
    """What an embedding looked up, (rows, *), and what it found, (rows, *, features)."""

    index: Tensor
    found: Tensor


class Lookup(NamedTuple):
    """A lookup by samples and by references, and the leaf of the pairs' graph that it is."""

    name: str
    x: LookedUp
    x0: LookedUp
    leaf: Tensor


@dataclass
class Run:
    """What one run of the model left, operation by operation."""

    entries: list[tuple[str, Any]] = field(default_factory=list)

    def rule(self, call: RuleCall, result: Tensor, operands: tuple[Tensor, ...]) -> Tensor:
        """Note a call of an operation."""
        self.entries.append((call.name, call))
        return result

    def lookup(self, name: str, index: Tensor, found: Tensor) -> Tensor:
        """Note what an embedding looked up."""
        self.entries.append((name, LookedUp(index, found)))
        return found

    def recurrence(self, *call: Any) -> Any:
        """Run a recurrence and note what it left."""
        from rewriter.onnx_explainer.recurrences import run_recurrence

        left, result = run_recurrence(*call)
        self.entries.append((call[0], left))
        return result


@dataclass
class PairsRun:
    """The run that is taken back.

    Args:
        samples: what the samples' run left.
        references: what the references' run left.
        rows: how many there are.
        outers: of each operation; empty where all are 1.

    """

    samples: Run
    references: Run
    rows: Rows
    outers: list[Outers]
    position: int = 0
    lookups: list[Lookup] = field(default_factory=list)

    def next(self, name: str) -> tuple[Any, Any, Outers]:
        """Return what samples and references left of the operation that runs now."""
        (at, x), (at0, x0) = self.samples.entries[self.position], self.references.entries[self.position]
        if not at == at0 == name:
            raise RewriteError(
                f"{name}: the model's code took another path for the samples than for the references"
            )
        outers = self.outers[self.position] if self.outers else ()
        self.position += 1
        return x, x0, outers

    def rule(self, call: RuleCall, result: Tensor, operands: tuple[Tensor, ...]) -> Tensor:
        """Link a call of an operation."""
        x, x0, outers = self.next(call.name)
        outers = outers or (1,) * (len(call.operands) + 1)
        link = RuleLink(
            call.name, call.rule, x.operands, x0.operands, x.output, x0.output, self.rows.pairing, outers
        )
        linked: Tensor = PairRule.apply(link, self.rows, (result,), *operands)  # type: ignore[no-untyped-call]
        return linked

    def lookup(self, name: str, index: Tensor, found: Tensor) -> Tensor:
        """Make a leaf of what an embedding looked up, unless all rows look up the same."""
        x, x0, _ = self.next(name)
        if batch_of(x.index.shape, index.shape) is None:
            return found
        leaf = found.detach().requires_grad_()
        self.lookups.append(Lookup(name, x, x0, leaf))
        return leaf.clone()

    def recurrence(self, *call: Any) -> Any:
        """Link a recurrence."""
        from rewriter.onnx_explainer.recurrences import link_recurrence

        return link_recurrence(self.rows, *self.next(call[0]), *call)


class PairRule(torch.autograd.Function):
    """Stands for an operation with a rule in the autograd graph of the pairs."""

    @staticmethod
    def forward(ctx: Any, link: RuleLink, rows: Rows, result: tuple[Tensor], *operands: Tensor) -> Tensor:
        """Hand on what the operation gave."""
        ctx.link, ctx.rows = link, rows
        ctx.shapes = [each.shape for each in operands]
        return result[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule to all pairs."""
        link, rows = ctx.link, ctx.rows
        *outers, outer = link.outers
        with torch.no_grad():
            pulled = link.backward(rows.split(grads[0], link.y.shape, outer))
            joined = [
                rows.join(each, shape, outer)
                for each, shape, outer in zip(pulled, ctx.shapes, outers, strict=True)
            ]
        return None, None, None, *joined
