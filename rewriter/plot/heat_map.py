"""The heat map of one sequence: time by feature, the signal and the course of the prediction above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.errors import RewriteError
from rewriter.plot.sequences import OneSequence, one_sequence
from rewriter.plot.style import BLUE, DISTINCT, GREY, RED, Array, around_zero, figure_of, red_blue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

# Lines beyond that cannot be told apart.
_LINES = len(DISTINCT)


def heatmap(
    explanation: Any,
    *,
    sample: int = 0,
    output: int = 0,
    feature_names: Sequence[str] | None = None,
    prediction: Any = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw what each feature added at each step, below the signal and the course of the prediction.

    The course begins at the base value and adds what each step contributes, so that it ends at the
    prediction: what is drawn above is the sum of the columns drawn below.

    Args:
        explanation: a ``shap.Explanation`` of sequences, or an array (T, F), (M, T, F), (M, T, F, outputs).
        sample: which of the M.
        output: which of the outputs.
        feature_names: of the F features.
        prediction: (T,) what the model itself says after each step, drawn instead of the sums.
        figure: to draw in.

    Returns:
        The figure; its axes are the course, the signal (if the explanation has one), the heat map and its
        colour bar.

    Raises:
        RewriteError: for shapes that do not fit.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> figure = heatmap(np.ones((5, 3)), feature_names=["x", "y", "z"])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['sum so far', '', 'SHAP value']

    """
    sequence = one_sequence(explanation, sample, output, feature_names)
    course = sequence.course if prediction is None else _course(prediction, len(sequence.values))
    label = "sum so far" if sequence.base is None else "f(x) so far"
    figure = figure_of(figure, (7, 2.4 + 0.22 * min(40, len(sequence.names)) + 1.2))
    heights = [1.0] + [1.0] * (sequence.data is not None) + [max(1.5, 0.25 * len(sequence.names))]
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_course(rows[0], course, sequence.base, label if prediction is None else "f(x)")
    if sequence.data is not None:
        _draw_signal(rows[1], sequence.data, sequence.names)
    image = draw_image(rows[-1], sequence, around_zero(sequence.values))
    if sequence.data is not None and len(sequence.names) <= _LINES:
        # The names below tell the lines above apart.
        for name, colour in zip(rows[-1].get_yticklabels(), DISTINCT, strict=False):
            name.set_color(colour)
    rows[-1].set_xlabel("time step")
    figure.colorbar(image, ax=rows[-1], label="SHAP value", aspect=12)
    return figure


def draw_image(axes: Axes, sequence: OneSequence, scale: Normalize) -> AxesImage:
    """Draw attributions, features downwards and time to the right."""
    image = axes.imshow(
        sequence.values.T, cmap=red_blue(), norm=scale, aspect="auto", interpolation="nearest"
    )
    every = -(-len(sequence.names) // 40)
    axes.set_yticks(range(0, len(sequence.names), every), labels=sequence.names[::every])
    axes.spines[:].set_visible(False)
    return image


def _course(prediction: Any, length: int) -> Array:
    found = np.asarray(prediction, dtype=float)
    if found.shape != (length,):
        raise RewriteError(f"prediction: expected {length} numbers, one per step, got shape {found.shape}")
    return found


def _draw_course(axes: Axes, course: Array, base: float | None, label: str) -> None:
    steps = np.arange(len(course))
    start = base or 0.0
    axes.axhline(start, color=GREY, linestyle="--", linewidth=0.8)
    axes.fill_between(steps, np.maximum(course, start), start, color=RED, alpha=0.2, linewidth=0)
    axes.fill_between(steps, np.minimum(course, start), start, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(steps, course, color="#333333", linewidth=1.2)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_signal(axes: Axes, data: Array, names: Sequence[str]) -> None:
    few = len(names) <= _LINES
    for k, name in enumerate(names):
        colour = DISTINCT[k] if few else GREY
        axes.plot(data[:, k], color=colour, linewidth=0.9, alpha=1.0 if few else 0.4, label=name)
    axes.set_ylabel("signal")
    axes.spines[["top", "right"]].set_visible(False)
