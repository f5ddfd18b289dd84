"""Attributions must sum to the difference of the outputs; where they do not, say why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from passes.errors import RewriteError
from rewriter.engine.attribution import Target
from rewriter.engine.problem import Problem
from rewriter.explainer.result import Explained
from rewriter.explainer.suspects import first_break


class AdditivityError(RewriteError, AssertionError):
    """The attributions do not sum to the difference of the outputs."""


def _largest(problem: Problem) -> float:
    floats = [each for each in (*problem.samples, *problem.references) if each.is_floating_point()]
    return max((float(each.abs().max()) for each in floats if each.numel()), default=0.0)


# Roundings, in units of the dtype, of a sum of the size of an output and of all that it is split into.
_ROUNDINGS = 32
_WIDE = 1e-9


def check_sums(
    target: Target,
    done: Explained,
    problem: Problem,
    tolerance: float,
    is_rounding: Callable[[int], bool] | None = None,
) -> None:
    """Raise AdditivityError unless the attributions of every output of each sample sum to what they explain.

    Each is judged against its own change, not against other outputs or a level that both have: what rounding
    leaves of numbers of the size of the output, and of the attributions, is allowed besides.

    Args:
        target: what was explained.
        done: the result.
        problem: what was asked.
        tolerance: relative to the change of the output from its mean over the references.
        is_rounding: whether what a sample's attributions are off by is gone in a wider dtype; None if all was
            computed in the widest.

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
    dtype = torch.float64 if is_rounding is None else torch.float32
    rounding = _ROUNDINGS * torch.finfo(dtype).eps * (np.maximum(np.abs(f), np.abs(f0)) + parts)
    if dtype == torch.float64:
        # No level hides a change beside it; what cancels inside of a model may be larger than its outputs.
        rounding += _WIDE * max(float(np.abs(done.outputs).max()), float(np.abs(done.base).max()))
        # Of outputs that are 0 to rounding there is nothing to be off by.
        rounding += _ROUNDINGS * torch.finfo(dtype).eps * _largest(problem)
    # Not 'greater than', which is False for NaN.
    wrong = ~(gap <= tolerance * np.abs(f - f0) + rounding)
    for row in np.flatnonzero(wrong.any(1)):
        if is_rounding is not None and is_rounding(int(row)):
            continue
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
