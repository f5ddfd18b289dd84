"""Lengths, masks and other integers that are read beside what is explained.

A sample and a reference of different length have no common sequence to compare. So references are read in
the sample's context, with its lengths and masks: what lies in the padding has no influence then, and no
attribution. What the context alone does, ``f(x0, context of x) - f(x0, own context)``, is the attribution of
the inputs that hold it; a step of the Shapley order in which the context changes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rewriter.engine.contexts import in_context
from rewriter.engine.integers.origins import is_integer
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.runs.rows import decided, outputs_read_as
from rewriter.explainer.result import Explained

Array = np.ndarray[Any, Any]
Explain = Callable[[Problem], Explained]


def explained_as_read(
    target: Target,
    problem: Problem,
    contexts: Sequence[int],
    run: Callable[[Inputs], Tensor],
    explain: Explain,
    undecided: set[Any],
    *,
    mixed: bool = False,
) -> Explained:
    """Explain samples by references of which the model reads lengths and masks as of the samples.

    Args:
        target: what is explained.
        problem: what is to be explained.
        contexts: which inputs are contexts.
        run: returns the model's outputs.
        explain: explains samples whose references share what they are read by.
        undecided: shapes and dtypes of rows off which the model reads nothing; others are found out.
        mixed: it makes rows that are mixed of both, of which the model may read what it does of neither.

    """

    def read(problem: Problem) -> Explained:
        if not decides_otherwise(target, problem, undecided, mixed=mixed):
            return explain(problem)
        return explained_as_decided(target, problem, run, explain)

    return explained_in_context(target, problem, contexts, run, read) if contexts else read(problem)


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


def decides_otherwise(target: Target, problem: Problem, undecided: set[Any], *, mixed: bool = False) -> bool:
    """Whether the model reads something off its inputs alone in which samples and references may differ.

    Args:
        target: what is explained.
        problem: what is to be explained.
        undecided: shapes and dtypes of rows off which the model reads nothing; others are found out.
        mixed: there are mixtures of samples and references, too: a number of zeros in them is anything.

    """
    if target.interim is not None or not (problem.rows and problem.count):
        return False
    first = [each[:1] for each in problem.samples]
    form = tuple((each.shape, each.dtype) for each in first)
    if form in undecided:
        return False
    if not decided(target, [torch.cat([each, each]) for each in first]):
        # What a call of a graph decides hangs on its dtypes; of tokens on their numbers, too.
        if target.has_one_path and not any(map(is_integer, first)):
            undecided.add(form)
        return False
    return mixed or any(
        _keys(target, rows) != _keys(target, [each[:1].expand_as(rows[k]) for k, each in enumerate(first)])
        for rows in (problem.samples, problem.all_references())
    )


def _keys(target: Target, rows: Inputs) -> list[bytes]:
    return [each.value.cpu().numpy().tobytes() for each in decided(target, rows)]


def explained_as_decided(
    target: Target, problem: Problem, run: Callable[[Inputs], Tensor], explain: Explain
) -> Explained:
    """Explain samples by references of which the model reads masks and lengths as of the samples.

    Args:
        target: what is explained.
        problem: what is to be explained.
        run: returns the model's outputs.
        explain: explains samples whose references are read by the decisions of one row.

    """
    done = [_InContext(rows, part, explain(part)) for rows, part in _alike(target, problem)]
    merged = _merged(problem, done)
    values, base = [each.copy() for each in merged.values], merged.base.copy()
    f0 = None if problem.own else _outputs(run, problem.references)
    for group in done:
        # With references of their own, samples are alone in their groups.
        references = group.problem.references_of(0)
        was = _outputs(run, references) if f0 is None else f0
        now = outputs_read_as(target, references, group.problem.read_as).double().cpu().numpy()
        for i in group.rows.tolist():
            base[i] = was.mean(0)
            effect = (now - was)[:, problem.chosen[i].long().cpu().numpy()]
            if effect.any():
                sample = [each[i : i + 1] for each in problem.samples]
                differ = _deciding(target, sample, references)
                _give([each[i : i + 1] for each in values], effect, differ)
    return replace(merged, values=values, base=base)


def _alike(target: Target, problem: Problem) -> Iterator[tuple[Tensor, Problem]]:
    """Yield rows of samples of which the model reads the same off, and their problem."""
    groups: dict[Any, list[int]] = {}
    for i in range(problem.rows):
        row = [each[i : i + 1] for each in problem.samples]
        key = i if problem.own else tuple(_keys(target, [torch.cat([each, each]) for each in row]))
        groups.setdefault(key, []).append(i)
    for places in groups.values():
        rows = torch.tensor(places)
        part = problem.of_rows(rows)
        yield rows, replace(part, read_as=[each[:1] for each in part.samples])


def _deciding(target: Target, sample: Inputs, references: Inputs) -> list[Array]:
    """Return which elements (N, E) of each input made decisions of references differ from a sample's.

    Of a decision that is not made for each element, those are meant that differ in the inputs it was made of.
    """
    rows = [row.expand_as(each) for row, each in zip(sample, references, strict=True)]
    numbered = [k for k, each in enumerate(references) if each.dtype != torch.bool]
    sizes = [references[k].numel() for k in numbered]
    blamed = torch.zeros(sum(sizes), dtype=torch.bool)
    candidates = torch.zeros_like(blamed)
    for each, other in zip(decided(target, rows), decided(target, references), strict=False):
        if each.value.shape != other.value.shape:
            # Steps of packed sequences, say: it follows from the decisions before.
            break
        origins = each.origins.flatten().cpu()
        known = origins >= 0
        if bool(known.any()):
            candidates[origins[known]] = True
        else:
            # It was computed before: what it was made of is all that is known.
            for k, begin, size in zip(numbered, accumulate([0, *sizes]), sizes, strict=False):
                candidates[begin : begin + size] |= k in each.inputs
        if each.of_each:
            blamed[origins[(each.value != other.value).flatten().cpu() & known]] = True
    found = [np.zeros((len(each), each[0].numel())) for each in references]
    by_element = torch.split(blamed, sizes)
    told = np.zeros(len(rows[0]), bool)
    for k, of_each in zip(numbered, by_element, strict=True):
        found[k][:] = of_each.view(len(rows[k]), -1).numpy()
        told |= found[k].any(1)
    for k, some in zip(numbered, torch.split(candidates, sizes), strict=True):
        differs = (rows[k] != references[k]).reshape(len(rows[k]), -1).cpu() & some.view(len(rows[k]), -1)
        found[k][~told] = differs.numpy()[~told]
    return found


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

    values, data, multipliers, errors = (
        [put(list(each)) for each in zip(*lists, strict=True)]
        for lists in zip(
            *((part.values, part.data, part.multipliers, part.errors) for part in parts), strict=True
        )
    )
    outputs, base = put([part.outputs for part in parts]), put([part.base for part in parts])
    return Explained(values, data, outputs, base, problem.chosen, multipliers, errors)


def _give(values: Sequence[Array], effect: Array, differ: Sequence[Array]) -> None:
    """Share the effect of each reference's context, (N, K), among the integers that differ, (N, E)."""
    total = np.maximum(sum(each.sum(1, keepdims=True) for each in differ), 1)
    for value, each in zip(values, differ, strict=True):
        value += ((each / total).T @ effect / len(effect)).reshape(value.shape)
