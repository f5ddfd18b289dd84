"""The three runs of an explanation: references, samples, and all pairs of them for the backward pass.

Rules need values of samples and references, (M + N) rows; multipliers live on K x N x M pairs. The third run
has a row for each pair and output. Nothing of what it computes is used but its autograd graph, through which
multipliers go back; so what is left of it in a graph that is written down is the backward pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from passes.errors import RewriteError
from rewriter.engine.linked_modules import RuleCall, RuleLink
from rewriter.engine.tape import Outers
from rewriter.onnx_explainer.recurrences import link_recurrence, run_recurrence
from rewriter.onnx_explainer.rows import Rows, batch_of


@dataclass(frozen=True)
class LookedUp:
    """One lookup by an embedding.

    Args:
        index: what was looked up, (rows, *).
        found: what was found, (rows, *, features).

    """

    index: Tensor
    found: Tensor


@dataclass(frozen=True)
class Lookup:
    """A lookup, linked.

    Args:
        name: of the embedding.
        x: by the samples.
        x0: by the references.
        leaf: of the pairs' autograd graph, which it is.

    """

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
            try:
                pulled = link.backward(rows.split(grads[0], link.y.shape, outer))
            except GuardOnDataDependentSymNode as error:
                raise RewriteError(
                    f"export_explainer_onnx: {link.name}: its rule goes by values (which is largest), and "
                    "has no form in ONNX; DeepExplainer explains it here"
                ) from error
            joined = [
                rows.join(each, shape, outer)
                for each, shape, outer in zip(pulled, ctx.shapes, outers, strict=True)
            ]
        return None, None, None, *joined
