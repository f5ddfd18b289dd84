"""What each feature added over time, as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from passes.errors import RewriteError
from rewriter.plot.sequences import one_sequence
from rewriter.plot.style import DISTINCT, GREY, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def over_time(
    explanation: Any,
    *,
    sample: int = 0,
    output: int = 0,
    feature_names: Sequence[str] | None = None,
    max_display: int = 6,
    ax: Axes | None = None,
) -> Axes:
    """Draw a line per feature: what it added at each step.

    Features of small shares are drawn as one, so that the lines sum to the attribution of the step.

    Args:
        explanation: a ``shap.Explanation`` of sequences, or an array (T, F), (M, T, F), (M, T, F, outputs).
        sample: which of the M.
        output: which of the outputs.
        feature_names: of the F features.
        max_display: lines at most, 1 to 10.
        ax: to draw in.

    Raises:
        RewriteError: for shapes that do not fit, or that many lines.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> import numpy as np
        >>> ax = over_time(np.ones((5, 3)), max_display=2)
        >>> ax.get_legend_handles_labels()[1]
        ['x0', 'other 2 features']

    """
    if not 1 <= max_display <= len(DISTINCT):
        raise RewriteError(f"max_display: expected 1 to {len(DISTINCT)} lines, got {max_display}")
    sequence = one_sequence(explanation, sample, output, feature_names)
    ax = axes_of(ax, (7, 3))
    values, names = sequence.of_largest(max_display)
    ax.axhline(0, color=GREY, linewidth=0.8)
    for k, name in enumerate(names):
        ax.plot(values[:, k], color=DISTINCT[k], linewidth=1.4, label=name)
    ax.set(xlabel="time step", ylabel="SHAP value")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return ax
