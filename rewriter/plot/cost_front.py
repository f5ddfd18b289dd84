"""Distance against cost, and the front of what is nearest for its cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from passes.errors import RewriteError
from rewriter.plot.style import BLUE, PALE, RED, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def on_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of those that nothing is nearer than at as little cost, the cheapest first.

    Example:
        >>> on_front({"slow": (2.0, 0.5), "quick": (1.0, 1.0), "bad": (3.0, 0.7)})
        ['quick', 'slow']

    """
    found: list[str] = []
    for name in sorted(points, key=points.__getitem__):
        if not found or points[name][1] < points[found[-1]][1]:
            found.append(name)
    return found


def front(
    points: Mapping[str, tuple[float, float]], *, ours: Collection[str] = (), ax: Axes | None = None
) -> Axes:
    """Draw distance against cost, both on a logarithmic scale, and the front.

    Args:
        points: cost and distance, by the name of what was measured.
        ours: names of those to be told from the others.
        ax: to draw in.

    Raises:
        RewriteError: for no points, numbers that have no logarithm, or names that are no points.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> ax = front({"slow": (2.0, 0.5), "quick": (1.0, 1.0)}, ours=["quick"])
        >>> ax.get_legend_handles_labels()[1]
        ['nearest for its cost', '1  slow', '2  quick']

    """
    if not points:
        raise RewriteError("points: expected cost and distance by name, got none")
    for name, point in points.items():
        if np.shape(point) != (2,) or not all(0 < each < np.inf for each in point):
            raise RewriteError(
                f"points: expected cost and distance, both larger than 0, got {name}: {point!r}"
            )
    if unknown := set(ours) - points.keys():
        raise RewriteError(f"ours: expected names of points, got {', '.join(sorted(unknown))}")
    ax = axes_of(ax, (9, 4.8))
    along = np.array([points[name] for name in on_front(points)])
    ax.plot(along[:, 0], along[:, 1], color=PALE, zorder=1, label="nearest for its cost")
    for number, (name, at) in enumerate(points.items(), 1):
        mine = name in ours
        ax.scatter(*at, color=RED if mine else BLUE, marker="o" if mine else "s", label=f"{number}  {name}")
        ax.annotate(str(number), at, xytext=(5, 4), textcoords="offset points", fontsize=8)
    ax.set(xscale="log", yscale="log", xlabel="cost", ylabel="distance")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return ax
