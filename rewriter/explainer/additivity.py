"""Attributions must sum to the difference of the outputs; where they do not, say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.diagnosis.rounding import rounding_of
from rewriter.engine.problem import Problem, Target
from rewriter.explainer.result import Explained
from rewriter.explainer.suspects import first_break

Array = np.ndarray[Any, Any]


class AdditivityError(RewriteError, AssertionError):
    """The attributions do not sum to the difference of the outputs."""


# Roundings, in units of the dtype, of a sum of the size of an output and of all that it is split into.
_ROUNDINGS = 32
_PARTS = 100
# Rows of each side whose rounding is measured.
_MEASURED = 16


def check_sums(
    target: Target,
    done: Explained,
    problem: Problem,
    tolerance: float,
    in_float64: Callable[[Tensor], Explained | None] | None = None,
) -> None:
    """Raise AdditivityError unless the attributions of every output of each sample sum to what they explain.

    Each is judged against its own change, not against other outputs or a level that both have: what rounding
    leaves of numbers of the size of the output, and of the attributions, is allowed besides.

    Args:
        target: what was explained.
        done: the result.
        problem: what was asked.
        tolerance: relative to the change of the output from its mean over the references.
        in_float64: explains samples once more in float64, and returns None if they do not add up there; None
            if all was computed so. What adds up takes the place of what rounding has spoilt.

    """
    if not done.outputs.size:
        return
    index = done.chosen.long().cpu().numpy()
    f, f0 = (np.take_along_axis(each, index, 1) for each in (done.outputs, done.base))
    rows = len(f)
    total, parts = np.zeros_like(f), np.zeros_like(f)
    for each in done.values:
        flat = each.reshape(rows, -1, f.shape[1])
        total += flat.sum(1)
        parts += np.abs(flat).sum(1)
    gap = np.abs(total - (f - f0))
    dtype = torch.float64 if in_float64 is None else torch.float32
    size = np.maximum(np.abs(f), np.abs(f0))
    if in_float64 is not None:
        # Attributions far larger than what they explain are spoilt by rounding themselves.
        parts = np.minimum(parts, _PARTS * size)
    rounding = _ROUNDINGS * torch.finfo(dtype).eps * (size + parts)
    if dtype == torch.float64:
        # Of outputs that are 0 to rounding there is nothing to be off by.
        rounding += _ROUNDINGS * torch.finfo(dtype).eps * min(1.0, _largest(problem))
    # Not 'greater than', which is False for NaN.
    wrong = ~(gap <= tolerance * np.abs(f - f0) + rounding)
    spoilt = np.flatnonzero(wrong.any(1))
    if in_float64 is None and len(spoilt):
        # What cancels inside of a model may be larger than what it gives.
        rounding += _ROUNDINGS * _measured(target, problem, spoilt[:_MEASURED], done.outputs.shape[1])[index]
        wrong = ~(gap <= tolerance * np.abs(f - f0) + rounding)
        spoilt = np.flatnonzero(wrong.any(1))
    if in_float64 is not None and len(spoilt):
        spoilt = _computed_wider(done, spoilt, index, in_float64)
    for row in spoilt:
        ratio = gap[row] / (np.abs(f - f0)[row] + rounding[row])
        column = int(np.nan_to_num(np.where(wrong[row], ratio, -1.0), nan=np.inf).argmax())
        expected = f[row, column] - f0[row, column]
        reason = first_break(target, problem, int(row), int(index[row, column]))
        raise AdditivityError(
            f"the attributions of output {index[row, column]} of sample {row} sum to "
            f"{total[row, column]:.6g} instead of {expected:.6g}, off by {ratio[column]:.1e} of that change "
            f"(tolerance {tolerance:.0e}). {reason} Pass check_additivity=False to take the values as they "
            "are."
        )


def _computed_wider(
    done: Explained, rows: Array, index: Array, in_float64: Callable[[Tensor], Explained | None]
) -> Array:
    """Put what adds up in float64 into the result; return the rows that do not."""
    whole = in_float64(torch.from_numpy(rows))
    one_by_one = ((row, in_float64(torch.tensor([row]))) for row in rows)
    parts = one_by_one if whole is None and len(rows) > 1 else [(rows, whole)]
    left = []
    for some, wide in parts:
        if wide is None:
            left += list(np.atleast_1d(some))
            # The first is to be told.
            break
        for place, row in enumerate(np.atleast_1d(some)):
            for narrow, each in zip(done.values, wide.values, strict=False):
                flat = each[place].reshape(-1, wide.outputs.shape[1])[:, index[row]]
                narrow[row] = flat.reshape(narrow[row].shape)
    return np.array(left, int)


def _measured(target: Target, problem: Problem, rows: Array, outputs: int) -> Array:
    """Return what rounding may make of each output of some samples, and of their references."""
    part = problem.of_rows(torch.from_numpy(rows))
    try:
        references = [each[:_MEASURED] for each in part.all_references()]
        moved = [rounding_of(target, side).amax(0) for side in (part.samples, references)]
    except Exception:
        # A model may refuse what is not quite what it was given.
        return np.zeros(outputs)
    return sum(moved).numpy()  # type: ignore[union-attr]


def _largest(problem: Problem) -> float:
    floats = [each for each in (*problem.samples, *problem.references) if each.is_floating_point()]
    return max((float(each.abs().max()) for each in floats if each.numel()), default=0.0)
