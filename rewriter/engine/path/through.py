"""Paths through a layer: what it takes, or gives, is an input by itself, before those of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rewriter.engine.attribution import record
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.runs.rows import is_made_of, run_linked
from rewriter.engine.tape import Pairing


@dataclass(frozen=True)
class Through:
    """A model in which a layer gets what it is given.

    Args:
        target: the model, with the layer's values as its first inputs.
        values_of: returns what the layer has by itself of some rows of the model's inputs, batch first.
        around: something goes from the model's inputs to what is explained on ways around the layer.

    """

    target: Target
    values_of: Callable[[Inputs], Inputs]
    around: bool

    def problem(self, problem: Problem) -> Problem:
        """Return what is to be explained, with the layer's values beside the model's inputs."""
        lead = (problem.count, problem.rows) if problem.own else (problem.count,)
        flat = [torch.unflatten(each, 0, lead) for each in self.values_of(problem.all_references())]
        references = [each.transpose(0, 1) for each in flat] if problem.own else flat
        return replace(
            problem,
            samples=[*self.values_of(problem.samples), *problem.samples],
            references=[*references, *problem.references],
        )


def through(target: Target, values_of: Callable[[Inputs], Inputs], problem: Problem) -> Through:
    """Open a model at the layer that is explained.

    Args:
        target: of a layer.
        values_of: returns what the layer has of some rows of the model's inputs, batch first.
        problem: with one sample and one reference, at least.

    Raises:
        RowCountError: if samples and references take different paths through the model's code.

    """
    # Two rows: a model may take the batch away where it is of size 1.
    row, row0 = (
        [torch.cat([each[:1], each[:1]]) for each in side]
        for side in (problem.samples, problem.all_references())
    )
    values, values0 = values_of(row), values_of(row0)
    opened = replace(target, interim=None, given=len(values))
    tape, _ = record(opened, [*values0, *row0])
    tape.pairing = Pairing(2, 1, own=True, end=1)
    leaves, outputs = run_linked(opened, [*values, *row], tape)
    looked_up: list[Tensor] = [each.output for each in tape.lookups]
    return Through(opened, values_of, is_made_of(outputs, [*leaves[len(values) :], *looked_up]))
