"""A text whose tokens are coloured by what they added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.errors import RewriteError
from rewriter.plot.sequences import one_sequence
from rewriter.plot.style import Array, around_zero, axes_of, red_blue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the height of a line, the width of the axes, and the width of a letter, in inches.
_LINE, _WIDTH, _LETTER = 0.42, 7.0, 0.0845


def tokens(
    explanation: Any,
    tokens: Sequence[str],
    *,
    sample: int = 0,
    output: int = 0,
    show_values: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Write a text, each token on the colour of its attribution.

    Args:
        explanation: of the embedded tokens, as ``DeepExplainer((model, embedding), …)`` gives it, (T, F),
            (M, T, F) or (M, T, F, outputs); what the F numbers of a token added is summed. Or an array (T,).
        tokens: the text, one per step. Fewer than steps are those at the beginning; what is left is padding,
            and must have added nothing.
        sample: which of the M.
        output: which of the outputs.
        show_values: write the number below each token.
        ax: to draw in.

    Raises:
        RewriteError: for shapes that do not fit.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> ax = tokens(np.array([0.1, 0.9]), ["not", "bad"])
        >>> [text.get_text() for text in ax.texts]
        ['not', '+0.10', 'bad', '+0.90']

    """
    given = (
        np.asarray(explanation)[:, None]
        if np.ndim(getattr(explanation, "values", explanation)) == 1
        else None
    )
    values = one_sequence(explanation if given is None else given, sample, output).values.sum(1)
    if isinstance(tokens, str) or not 0 < len(tokens) <= len(values):
        raise RewriteError(
            f"tokens: expected a list of at most {len(values)} strings, one per step, got {tokens!r}"
        )
    left = np.abs(values[len(tokens) :]).sum()
    if left > 1e-6 * np.abs(values).sum():
        raise RewriteError(
            f"tokens: {len(tokens)} for {len(values)} steps, but what is beyond them added {left:.3g}, so "
            "that it is no padding; give a token for each step"
        )
    letters = 3.5 if show_values else 0.0
    placed = _placed([max(len(str(token)), letters) for token in tokens])
    digits = _digits(values)
    lines = placed[-1][1] + 1
    ax = axes_of(ax, (_WIDTH, _LINE * (1.6 if show_values else 1) * lines + 0.2))
    scale, colours = around_zero(values), red_blue()
    for (x, line), token, value in zip(placed, tokens, values, strict=False):
        y = 1 - (line + 0.4) / lines
        box = {"facecolor": colours(scale(value)), "edgecolor": "none", "boxstyle": "round,pad=0.25"}
        ax.text(
            x,
            y,
            _plain(str(token)),
            bbox=box,
            family="monospace",
            fontsize=10,
            va="center",
            color=_ink(colours(scale(value))),
        )
        if show_values:
            ax.text(x, y - 0.4 / lines, f"{value:+.{digits}f}", fontsize=7, va="center", color="#555555")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    return ax


def _placed(lengths: Sequence[float]) -> list[tuple[float, int]]:
    """Return where each token begins, of the width, and in which line: as many in one as fit."""
    x, line, found = 0.01, 0, []
    for length in lengths:
        width = (length + 1.7) * _LETTER / _WIDTH
        if x + width > 1 and x > 0.01:
            x, line = 0.01, line + 1
        found.append((x, line))
        x += width
    return found


def _digits(values: Array) -> int:
    """Return behind how many digits the largest number has two that count."""
    largest = np.abs(values).max()
    return int(np.clip(1 - np.floor(np.log10(largest)), 0, 9)) if largest else 0


def _plain(text: str) -> str:
    """Keep matplotlib from reading mathematics, and lines, into a text."""
    return text.replace("$", r"\$").replace("\n", "⏎")


def _ink(colour: Sequence[float]) -> str:
    """Return black or white, which of them can be read on a colour."""
    red, green, blue = colour[:3]
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "#ffffff"
