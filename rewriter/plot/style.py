"""Colours, and where to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.extras import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure, SubFigure

Array = np.ndarray[Any, Any]

#: What raises the prediction, and what lowers it: the colours of ``shap.plots``.
RED, BLUE = "#ff0051", "#008bfb"
GREY, PALE = "#777777", "#d9d9d9"
#: Of lines and bars that have to be told apart, also by those who see no red and green.
DISTINCT = (RED, BLUE, "#ffb000", "#7b61c9", "#00a087", "#a05195", "#f08a5d", "#3c5488", "#8f9c00", "#555555")


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``.

    Raises:
        MissingExtraError: if there is no matplotlib, saying how to get it.

    """
    return optional("matplotlib.pyplot", "rewriter.plot", "plots")


def figure_of(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    """Return the figure to draw in, a new one if there is none."""
    if figure is not None:
        return figure
    made: Figure = pyplot().figure(figsize=size, layout="constrained")
    return made


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw in, those of a new figure if there are none."""
    if ax is not None:
        return ax
    made: Axes = pyplot().subplots(figsize=size, layout="constrained")[1]
    return made


def red_blue() -> LinearSegmentedColormap:
    """Return the map from blue by white to red.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> [round(float(each), 2) for each in red_blue()(1.0)]
        [1.0, 0.0, 0.32, 1.0]

    """
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("red_blue", [BLUE, "#ffffff", RED])


def around_zero(*values: Array) -> Normalize:
    """Return what brings numbers to colours, 0 to white, the same for all that are given.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> scale = around_zero(np.array([1.0, -3.0]))
        >>> scale.vmin, scale.vmax
        (-3.0, 3.0)

    """
    from matplotlib.colors import Normalize

    largest = max((float(np.abs(each).max()) for each in values if each.size), default=0.0)
    return Normalize(-(largest or 1.0), largest or 1.0)
