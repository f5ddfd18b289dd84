"""Lengths, masks and other integers that are read beside what is explained.

A sample and a reference of different length have no common sequence to compare. So references are read in
the sample's context, with its lengths and masks: what lies in the padding has no influence then, and no
attribution. What the context alone does, ``f(x0, context of x) - f(x0, own context)``, is the attribution of
the inputs that hold it; a step of the Shapley order in which the context changes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rewriter.engine.attribution import Target
from rewriter.engine.problem import Inputs, Problem
from rewriter.engine.tape import Tape, running
from rewriter.explainer.result import Explained

Array = np.ndarray[Any, Any]
_ROWS = 8
Explain = Callable[[Problem], Explained]


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
    before = _looked_up(target, rows)
    return [k for k in integers if not _changes(target, rows, k, before)]


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


def explained_in_context(
    target: Target,
    problem: Problem,
    contexts: Sequence[int],
    run: Callable[[Inputs], Tensor],
    explain: Explain,
) -> Explained:
    """Explain samples by references that are read in the samples' contexts.

    Args:
        target: what is explained.
        problem: what is to be explained.
        contexts: which inputs are contexts.
        run: returns the model's outputs.
        explain: explains samples whose references share their context.

    """
    done = [_InContext(rows, part, explain(part)) for rows, part in _groups(problem, contexts)]
    merged = _merged(problem, done)
    if target.interim is not None:
        return merged
    values = [each.copy() for each in merged.values]
    base = merged.base.copy()
    f0 = None if problem.own else _outputs(run, problem.references)
    for group in done:
        f = None if problem.own else _outputs(run, group.problem.references)
        for place, i in enumerate(group.rows.tolist()):
            references = problem.references_of(i)
            was = _outputs(run, references) if f0 is None else f0
            now = _outputs(run, group.problem.references_of(place)) if f is None else f
            base[i] = was.mean(0)
            differ = [
                (references[k] != problem.samples[k][i]).reshape(len(was), -1).double().cpu().numpy()
                for k in contexts
            ]
            effect = (now - was)[:, problem.chosen[i].long().cpu().numpy()]
            # As slices: of an array of one dimension an item is a number, not a view.
            _give([values[k][i : i + 1] for k in contexts], effect, differ)
    return replace(merged, values=values, base=base)


class _InContext(NamedTuple):
    """Samples whose references are read in one context."""

    rows: Tensor
    problem: Problem
    explained: Explained


def _outputs(run: Callable[[Inputs], Tensor], inputs: Inputs) -> Array:
    outputs = run(inputs)
    return outputs.reshape(len(outputs), -1).double().cpu().numpy()


def _groups(problem: Problem, contexts: Sequence[int]) -> Iterator[tuple[Tensor, Problem]]:
    """Yield rows of samples that share a context, with references as read in it."""
    samples = problem.samples
    if problem.own:
        read = [
            samples[k].unsqueeze(1).expand_as(each) if k in contexts else each
            for k, each in enumerate(problem.references)
        ]
        yield torch.arange(problem.rows), replace(problem, references=read)
        return
    flat = torch.cat([samples[k].reshape(problem.rows, -1).long() for k in contexts], 1)
    _, group = torch.unique(flat, dim=0, return_inverse=True)
    for number in range(int(group.max()) + 1 if len(group) else 0):
        rows = (group == number).nonzero().flatten().cpu()
        read = [
            samples[k][rows[:1]].expand_as(each) if k in contexts else each
            for k, each in enumerate(problem.references)
        ]
        yield rows, replace(problem.of_rows(rows), references=read)


def _merged(problem: Problem, done: Sequence[_InContext]) -> Explained:
    parts = [group.explained for group in done]

    def put(pieces: list[Array]) -> Array:
        whole = np.zeros((problem.rows, *pieces[0].shape[1:]), pieces[0].dtype)
        for group, piece in zip(done, pieces, strict=True):
            whole[group.rows.numpy()] = piece
        return whole

    values = [put([part.values[k] for part in parts]) for k in range(len(parts[0].values))]
    data = [put([part.data[k] for part in parts]) for k in range(len(parts[0].data))]
    outputs, base = put([part.outputs for part in parts]), put([part.base for part in parts])
    return Explained(values, data, outputs, base, problem.chosen)


def _give(values: Sequence[Array], effect: Array, differ: Sequence[Array]) -> None:
    """Share the effect of each reference's context, (N, K), among the integers that differ, (N, E)."""
    total = np.maximum(sum(each.sum(1, keepdims=True) for each in differ), 1)
    for value, each in zip(values, differ, strict=True):
        value += ((each / total).T @ effect / len(effect)).reshape(value.shape)
