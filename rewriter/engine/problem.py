"""What is to be explained by what."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Inputs = list[Tensor]


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
