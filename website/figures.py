"""Figures of the page on benchmarks, drawn from the committed results; a hook of MkDocs puts them into it.

A comment ``<!-- figure: name -->`` is where one goes. They are SVG in the page itself, so that their text has
the colour of the page's, by day and by night.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mkdocs.exceptions import PluginError

RESULTS = Path(__file__).parent.parent / "benchmarks/results"
_MARK = re.compile(r"<!-- figure: (?P<name>\w+) -->")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    # They can be told apart on white and on black, and by most who see few colours.
    "axes.prop_cycle": cycler(color=["#3b82c4", "#e08a1e", "#3aa675", "#c9527e", "#8a7fd1"]),
}

Rows = list[dict[str, Any]]


def results(name: str, part: str | None = None) -> Rows:
    """Return the rows of a committed run."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows: Rows = (found[part] if part else found)["results"]
    return rows


def _points(axes: Axes, names: Sequence[str], series: dict[str, list[float | None]]) -> None:
    """Draw one row for each name, one kind of point for each series, on a logarithmic axis."""
    for (label, values), marker in zip(series.items(), "os^Dv", strict=False):
        kept = [(value, row) for row, value in enumerate(values) if value is not None]
        axes.plot(*zip(*kept, strict=True), marker, label=label, markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def additivity() -> Figure:
    """How far sums are from what they should be, the worst length of each layer."""
    rows = results("additivity")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    kinds = ["as it is", "decomposed, float32", "decomposed, float64"]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    worst = {
        kind: [max(row[kind] for row in rows if row["layer"] == layer) for layer in layers] for kind in kinds
    }
    axes = figure.subplots()
    _points(axes, layers, dict(worst))
    axes.set_xlabel("additivity error of stock shap.DeepExplainer, worst of T = 1, 10, 50, 200")
    return figure


def whole_models() -> Figure:
    """The same for whole models."""
    rows = results("whole_model")
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "stock, as it is": "stock shap, as it is",
        "stock, decomposed": "decomposed",
        "ours": "our explainer",
    }
    series = {label: [_number(row.get(kind)) for row in rows] for kind, label in kinds.items()}
    _points(axes, [row["model"] for row in rows], series)
    axes.set_xlabel("additivity error, float32; no blue point where stock shap fails")
    return figure


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def explaining() -> Figure:
    """How many times longer others take to explain than our explainer."""
    rows = results("explain", "speed")
    names = [
        ",".join(str(row[key]) for key in ("T", "H", "I", "N", "M", "K"))
        + f"  {row['kind']}{' 2 x bidirectional' if row['layers'] == 2 else ''}"
        for row in rows
    ]
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots()
    peers = {
        "shap": "stock shap",
        "captum DeepLiftShap": "captum DeepLiftShap",
        "captum IG": "captum IG, 50 steps",
    }
    _points(
        axes,
        names,
        {label: [_number(row["peers/ours"].get(key)) for row in rows] for key, label in peers.items()},
    )
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_xlabel("time over ours")
    return figure


def growth() -> Figure:
    """How the time of an explanation grows with each size."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for row in results("explain", "growth"):
        sizes, seconds = zip(*row["times"], strict=True)
        axes.loglog(sizes, seconds, "o-", label=f"{row['in']}: exponent {row['exponent']:.2f}")
    axes.set_xlabel("size: steps T, samples M, references N, outputs K")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)
    return figure


def forward() -> Figure:
    """Decompositions of a layer beside the native one."""
    rows = [row for row in results("forward") if row["case"].endswith("B=64 T=100 I=64 H=128")]
    kinds = ["rolled", "flat", "torch.export", "torch.ao"]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for place, kind in enumerate(kinds):
        there = [(number + place * 0.2, row[kind]) for number, row in enumerate(rows) if kind in row]
        places, heights = zip(*there, strict=True)
        axes.bar(places, heights, width=0.18, label=kind)
    names = [f"{row['case'].split()[0]}\n{row['mode']}" for row in rows]
    axes.set_xticks([number + 0.3 for number in range(len(rows))], names, fontsize=7)
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_ylabel("time over the native layer's")
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def _by_steps(rows: Rows, kinds: dict[str, str]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for kind, label in kinds.items():
        there = [(row["T"], row[kind]) for row in rows if kind in row]
        axes.loglog(*zip(*there, strict=True), "o-", label=label)
    axes.set_xlabel("steps T")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)
    return figure


def stock_shap() -> Figure:
    """How stock shap's time grows with the length."""
    kinds = {"rolled_s": "decomposed, rolled", "flat_s": "decomposed, flat", "by hand_s": "a cell by hand"}
    return _by_steps(results("shap_growth"), kinds)


def rewriting() -> Figure:
    """How long a rewriting takes."""
    rows = [row for row in results("decompose_time") if row["layers"] == 1]
    return _by_steps(rows, {"rolled_s": "rolled", "flat_s": "flat", "torch.export_s": "torch.export"})


def onnx_files() -> Figure:
    """Run time of exported files over that of torch's file with the fused operator."""
    rows = results("onnx_export")
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['layer']} {row['form']}  {row['size']}" for row in rows]
    batches = {"of_fused_1": "batch of 1", "of_fused_32": "batch of 32"}
    _points(axes, names, {label: [_number(row[key]) for row in rows] for key, label in batches.items()})
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_xlabel(
        "time over that of torch's file with LSTM or GRU, in onnxruntime; T, I, H, layers, directions"
    )
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    each.__name__: each
    for each in (additivity, whole_models, explaining, growth, forward, stock_shap, rewriting, onnx_files)
}


def svg(name: str) -> str:
    """Draw a figure as an SVG element for a page."""
    draw = FIGURES[name]
    # Names of parts of one figure must not be those of another's on the same page.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure, drawn = draw(), io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(
        r'(?<=")(figure|axes|patch|line2d|matplotlib\.axis|xtick|ytick|text|legend)_', rf"{name}_\1_", text
    )
    # Text is black unless it says otherwise.
    label = html.escape((draw.__doc__ or name).strip())
    return text.replace(
        "<svg ", f'<svg class="figure" fill="currentColor" role="img" aria-label="{label}" ', 1
    )


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Draw the figures of a page."""

    def drawn(found: re.Match[str]) -> str:
        if found["name"] not in FIGURES:
            raise PluginError(
                f"{page.file.src_uri}: no figure {found['name']!r}; there are {', '.join(FIGURES)}"
            )
        return svg(found["name"])

    return _MARK.sub(drawn, content)
