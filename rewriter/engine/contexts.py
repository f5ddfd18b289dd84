"""Which inputs are lengths, masks and other integers that are read beside what is explained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.tape import Tape, running

_ROWS = 8


def in_context(sample: Inputs, references: Inputs, contexts: Sequence[int]) -> Inputs:
    """Return references as they are read in a sample's context.

    Args:
        sample: one row of each input.
        references: of that sample.
        contexts: which inputs are contexts.

    Example:
        >>> lengths = torch.tensor([7]), torch.tensor([3, 4])
        >>> in_context([torch.ones(1), lengths[0]], [torch.zeros(2), lengths[1]], [1])
        [tensor([0., 0.]), tensor([7, 7])]

    """
    return [sample[k].expand_as(each) if k in contexts else each for k, each in enumerate(references)]


def context_inputs(target: Target, problem: Problem) -> list[int]:
    """Return which inputs are read beside what is explained: integers that no embedding looks up.

    Found by exchanging the rows of one input: where that changes what is looked up, or what goes into the
    module that is explained, the input is a part of what is explained.

    Args:
        target: what is explained.
        problem: what is to be explained.

    """
    samples = problem.samples
    integers = [k for k, each in enumerate(samples) if not each.is_floating_point()]
    if not integers or not problem.rows:
        return []
    sides = (
        samples,
        [each.flatten(0, 1) for each in problem.references] if problem.own else problem.references,
    )
    picked = [_telling(side, [samples[k][0] for k in integers], integers) for side in sides]
    rows = [
        torch.cat([side[k][some] for side, some in zip(sides, picked, strict=True)])
        for k in range(len(samples))
    ]
    try:
        before = _looked_up(target, rows)
        return [k for k in integers if not _changes(target, rows, k, before)]
    except Exception:
        # A model may take lengths in descending order only.
        return [k for k in integers if not _changes_alone(target, rows, k)]


def _changes_alone(target: Target, rows: Inputs, k: int) -> bool:
    """Whether one input changes what is looked up, of rows that are all alike."""
    differs = (rows[k] != rows[k][:1]).reshape(len(rows[k]), -1).any(1)
    if not bool(differs.any()):
        return False
    alike = [each[:1].expand_as(each) for each in rows]
    before = _looked_up(target, alike)
    alike[k] = rows[k][differs][:1].expand_as(rows[k])
    after = _looked_up(target, alike)
    return len(after) != len(before) or not all(map(torch.equal, after, before))


def _telling(inputs: Inputs, first: Inputs, integers: Sequence[int]) -> Tensor:
    """Return some rows, among them one that differs from the first sample in each input that any does.

    Whether an input is a context must not depend on which rows are explained together.
    """
    differ = [
        (inputs[k] != row).reshape(len(inputs[k]), -1).any(1).nonzero().flatten()[:1]
        for k, row in zip(integers, first, strict=True)
    ]
    some = torch.arange(min(len(inputs[0]), _ROWS), device=inputs[0].device)
    return torch.cat([some, *differ])


def _looked_up(target: Target, rows: Inputs) -> Inputs:
    tape = Tape(tokens=target.tokens)
    with torch.inference_mode(False), torch.no_grad(), running(tape):
        target.run([each.clone() for each in rows])
    return tape.inputs if target.interim is not None else tape.indices


def _changes(target: Target, rows: Inputs, k: int, before: Inputs) -> bool:
    # Neither a sequence of its own nor a shift by one is sure to differ from what was there.
    for shift in range(1, len(rows[k])):
        rolled = [each.roll(shift, 0) if k == j else each for j, each in enumerate(rows)]
        if not rolled[k].equal(rows[k]):
            after = _looked_up(target, rolled)
            return len(after) != len(before) or not all(map(torch.equal, after, before))
    return False
