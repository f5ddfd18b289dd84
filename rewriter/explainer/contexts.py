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
from rewriter.engine.contexts import in_context
from rewriter.engine.problem import Inputs, Problem
from rewriter.explainer.result import Explained

Array = np.ndarray[Any, Any]
Explain = Callable[[Problem], Explained]


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
        read = in_context([each[rows[:1]] for each in samples], problem.references, contexts)
        yield rows, replace(problem.of_rows(rows), references=read)


def _merged(problem: Problem, done: Sequence[_InContext]) -> Explained:
    parts = [group.explained for group in done]

    def put(pieces: list[Array]) -> Array:
        whole = np.zeros((problem.rows, *pieces[0].shape[1:]), pieces[0].dtype)
        for group, piece in zip(done, pieces, strict=True):
            whole[group.rows.numpy()] = piece
        return whole

    values, data, multipliers = (
        [put(list(each)) for each in zip(*lists, strict=True)]
        for lists in zip(*((part.values, part.data, part.multipliers) for part in parts), strict=True)
    )
    outputs, base = put([part.outputs for part in parts]), put([part.base for part in parts])
    return Explained(values, data, outputs, base, problem.chosen, multipliers)


def _give(values: Sequence[Array], effect: Array, differ: Sequence[Array]) -> None:
    """Share the effect of each reference's context, (N, K), among the integers that differ, (N, E)."""
    total = np.maximum(sum(each.sum(1, keepdims=True) for each in differ), 1)
    for value, each in zip(values, differ, strict=True):
        value += ((each / total).T @ effect / len(effect)).reshape(value.shape)
