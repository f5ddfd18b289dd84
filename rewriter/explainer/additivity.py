"""Attributions must sum to the difference of the outputs; where they do not, say why."""

from __future__ import annotations

import numpy as np

from passes.errors import RewriteError
from rewriter.engine.attribution import Target
from rewriter.engine.problem import Problem
from rewriter.explainer.result import Explained
from rewriter.explainer.suspects import first_break


class AdditivityError(RewriteError, AssertionError):
    """The attributions do not sum to the difference of the outputs."""


def check_sums(target: Target, done: Explained, problem: Problem, tolerance: float) -> None:
    """Raise AdditivityError unless the attributions of every output sum to what they explain.

    Args:
        target: what was explained.
        done: the result.
        problem: what was asked.
        tolerance: relative to the largest output of samples and references.

    """
    if not done.outputs.size:
        return
    index = done.chosen.long().cpu().numpy()
    f, f0 = (np.take_along_axis(each, index, 1) for each in (done.outputs, done.base))
    rows = len(f)
    total = np.zeros_like(f)
    for each in done.values:
        total += each.reshape(rows, -1, f.shape[1]).sum(1)
    gap = np.abs(total - (f - f0))
    scale = max(float(np.abs(done.outputs).max()), float(np.abs(done.base).max()))
    # Not 'greater than', which is False for NaN.
    if not gap.max() <= tolerance * scale:
        row, column = np.unravel_index(int(np.nan_to_num(gap, nan=np.inf).argmax()), gap.shape)
        expected = f[row, column] - f0[row, column]
        reason = first_break(target, problem)
        raise AdditivityError(
            f"the attributions of output {index[row, column]} of sample {row} sum to "
            f"{total[row, column]:.6g} instead of {expected:.6g}, off by {gap[row, column] / scale:.1e} of "
            f"the largest output (tolerance {tolerance:.0e}). {reason} Pass "
            "check_additivity=False to take the values as they are."
        )
