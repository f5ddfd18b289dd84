"""What is to be explained of a model, and by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin
from rewriter.compiler.islands import islands_of, run_islands
from rewriter.engine.weights import SharedWeights

Inputs = list[Tensor]


@dataclass(frozen=True)
class Target:
    """What is explained, and with respect to what.

    Args:
        model: a linked copy.
        weights: those that it shares with the user's model.
        select: picks the tensor to explain from what the model returns.
        interim: name of the operation whose inputs receive the attributions, or None for the model's.
        tokens: integers receive attributions, where an embedding looks them up.
        stateful: the model's code keeps something between calls, so that each run needs a clone.
        code: why the model's own code runs, with rewritten layers, instead of a graph.
        rewritten: what the linked copy was made of.
        followed: a model of the same operations that gives what is explained, in which to look for what is
            lost; None for the rewritten one.
        given: how many tensors stand before the model's inputs, which a layer gets in place of its own.

    """

    model: nn.Module
    weights: SharedWeights
    select: Callable[[Any], Any]
    interim: str | None = None
    tokens: bool = False
    stateful: bool = False
    code: str | None = None
    rewritten: nn.Module | None = None
    followed: nn.Module | None = None
    given: int = 0

    @cached_property
    def _islands(self) -> list[str]:
        return [] if self.rewritten is None else islands_of(self.rewritten)

    @property
    def has_one_path(self) -> bool:
        """Whether it makes the same calls whatever numbers its inputs hold: a graph that keeps nothing."""
        return isinstance(self.rewritten, fx.GraphModule) and not (self._islands or self.stateful)

    def run(self, inputs: Inputs) -> Tensor:
        """Return the outputs to explain, with the batch first.

        Raises:
            RewriteError: if there is not one row per row of the input.

        """
        model = Twin(self.model).model if self.stateful else self.model
        with unnoticed(model):
            output = self.select(run_islands(self._islands, model, *inputs))
        if isinstance(output, Tensor) and output.dim() == 0 and len(inputs[0]) == 1:
            # Of one row with one output, squeezed.
            output = output.unsqueeze(0)
        if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != inputs[0].shape[0]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RewriteError(
                f"expected an output with the batch of {inputs[0].shape[0]} in dimension 0, got {got}; pass "
                "output=... to say which part of what the model returns is to be explained"
            )
        return output


@dataclass(frozen=True)
class Problem:
    """Samples, the references that explain them, and which outputs are explained.

    Args:
        samples: one tensor per input of the model, M rows each.
        references: likewise, N rows each; for ``own`` (M, N, *).
        chosen: (M, K), indices of the outputs, flattened.
        own: each sample has references of its own.
        read_as: one row of each input, by whose decisions the references are read; None for their own.
        multipliers: they are asked for, too, beside the attributions that they make.

    Example:
        >>> problem = Problem([torch.zeros(3, 2)], [torch.zeros(5, 2)], torch.zeros(3, 1).int())
        >>> problem.rows, problem.count, problem.outputs, problem.of_rows(slice(2)).rows
        (3, 5, 1, 2)

    """

    samples: Inputs
    references: Inputs
    chosen: Tensor
    own: bool = False
    read_as: Inputs | None = None
    multipliers: bool = False

    @property
    def rows(self) -> int:
        """Number of samples, M."""
        return self.samples[0].shape[0]

    @property
    def count(self) -> int:
        """Number of references of each sample, N."""
        return self.references[0].shape[int(self.own)]

    @property
    def outputs(self) -> int:
        """Number of outputs of each sample, K."""
        return self.chosen.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.samples[0].device

    def of_rows(self, rows: slice | Tensor) -> Problem:
        """Return the problem of some samples."""
        references = [each[rows] for each in self.references] if self.own else self.references
        return replace(
            self,
            samples=[each[rows] for each in self.samples],
            references=references,
            chosen=self.chosen[rows],
        )

    def of_references(self, begin: int, end: int) -> Problem:
        """Return the problem with some of the references."""
        span = slice(begin, end)
        references = [each[:, span] if self.own else each[span] for each in self.references]
        return replace(self, references=references)

    def with_references_of_their_own(self) -> Problem:
        """Return the same problem, of samples each of which has its references for itself."""
        if self.own:
            return self
        references = [each.expand(self.rows, *each.shape) for each in self.references]
        return replace(self, references=references, own=True)

    def references_of(self, row: int) -> Inputs:
        """Return the references (N, *) of a sample."""
        return [each[row] if self.own else each for each in self.references]

    def stacked(self) -> Inputs:
        """Return the references facing their samples: (N, M, *), or (N, 1, *) unless they are ``own``."""
        return [each.transpose(0, 1) if self.own else each.unsqueeze(1) for each in self.references]

    def all_references(self) -> Inputs:
        """Return the references as one batch, of all samples if they are ``own``, in the order (N, M)."""
        return [each.flatten(0, 1) for each in self.stacked()]
