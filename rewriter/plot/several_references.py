"""One sample beside several references: what it is compared with changes the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passes.errors import RewriteError
from rewriter.plot.heat_map import draw_image
from rewriter.plot.sequences import one_sequence
from rewriter.plot.style import around_zero, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


def references(
    explanations: Mapping[str, Any],
    *,
    sample: int = 0,
    output: int = 0,
    feature_names: Sequence[str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    r"""Draw explanations of one sample by several references side by side, in one scale of colours.

    Args:
        explanations: by the name of what the sample is compared with; each as for
            :func:`rewriter.plot.heatmap`, all of the same steps and features.
        sample: which of the M.
        output: which of the outputs.
        feature_names: of the F features.
        figure: to draw in.

    Returns:
        The figure; its axes are those of the explanations, in order, then the colour bar.

    Raises:
        RewriteError: for none, or shapes that do not fit.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> import numpy as np
        >>> figure = references({"zeros": np.ones((5, 3)), "mean": -np.ones((5, 3))})
        >>> [axes.get_title() for axes in figure.axes]
        ['zeros\nsum 15', 'mean\nsum -15', '']

    """
    if not explanations:
        raise RewriteError("explanations: expected one per reference, by its name, got none")
    found = {name: one_sequence(each, sample, output, feature_names) for name, each in explanations.items()}
    shapes = {name: each.values.shape for name, each in found.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise RewriteError(f"explanations: expected the same steps and features in all, got {listed}")
    names = next(iter(found.values())).names
    figure = figure_of(figure, (2.6 * len(found) + 1.6, 1.2 + 0.25 * min(40, len(names)) + 0.8))
    columns = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    scale = around_zero(*(each.values for each in found.values()))
    for axes, (name, each) in zip(columns, found.items(), strict=True):
        image = draw_image(axes, each, scale)
        total = f"sum {each.values.sum():.3g}"
        if each.base is not None:
            total = f"{each.base:.3g} → {each.course[-1]:.3g}"
        axes.set_title(f"{name}\n{total}", fontsize=9)
        axes.set_xlabel("time step")
    figure.colorbar(image, ax=list(columns), label="SHAP value", aspect=15)
    return figure
