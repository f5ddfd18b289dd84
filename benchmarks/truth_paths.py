"""How near to Shapley values paths come, in what time: blocks, segments and draws beside other methods.

Models are in float64, as in ``truth.py``. With 12 inputs the truth is brute force; with more it is many
permutations, whose error is said.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from problems.truth.cells import compare
from problems.truth.methods import exact
from problems.truth.models import LARGER, TWELVE, Problem, Size
from problems.truth.paths import BASELINE, METHODS, OURS, draw, explained
from problems.truth.permutations import permuted
from timing import RESULTS, arguments, publish
from torch import Generator, Tensor

from rewriter import DeepExplainer
from rewriter.plot.cost_front import on_front

FULL, QUICK = Size(3, 10, 6, 8, (1500, 200)), Size(1, 1, 1, 2, (5, 2))
PAIRS, QUICK_PAIRS = 4096, 8
Record = dict[str, Any]


def truth_of(problem: Problem, pairs: int) -> tuple[Tensor, float]:
    """Return the values of the players, and the error of these over their size, sums of absolute numbers."""
    if problem.x[0].numel() == problem.players == math.prod((4, 3)):
        return problem.by_group(exact(problem.net, problem.x, problem.references)), 0.0
    generator = Generator().manual_seed(1)
    # Outputs are good to seven digits: the rest is what orders are drawn.
    net, single = problem.net.float(), [each.float() for each in (problem.x, problem.references)]
    found = [permuted(net, x, single[1], problem.groups, pairs, generator) for x in single[0]]
    problem.net.double()
    values, errors = (torch.stack(each) for each in zip(*found, strict=True))
    return values, float(errors.abs().sum() * (2 / math.pi) ** 0.5 / values.abs().sum())


def measured(name: str, seed: int, problem: Problem, pairs: int) -> list[Record]:
    """Return what each method makes of a problem."""
    truth, error = truth_of(problem, pairs)
    explainer = DeepExplainer(problem.net, problem.references, progress=False)
    explainer.shap_values(problem.x)
    with torch.no_grad():
        change = (problem.net(problem.x) - problem.net(problem.references).mean(0)).view(-1)
    found = []
    for method in METHODS:
        values, ms = explained(method, problem, explainer)
        found.append(
            {
                "problem": name,
                "seed": seed,
                "method": method.name,
                "distance": float((values - truth).abs().sum() / truth.abs().sum()),
                "ms": ms,
                "additivity": float((values.sum(1) - change).abs().max()),
                "truth": error,
                "fit": problem.fit,
            }
        )
    return found


def geometric(numbers: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(max(each, 1e-12)) for each in numbers))


def points_of(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """Return time over the baseline's, and distance over DeepSHAP's, by method: geometric means."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record["method"], []).append(record)
    return {
        name: (
            geometric([a["ms"] / b["ms"] for a, b in zip(of, cells[BASELINE], strict=True)]),
            geometric([a["distance"] / b["distance"] for a, b in zip(of, cells["DeepSHAP"], strict=True)]),
        )
        for name, of in cells.items()
    }


def nearer_than_baseline(records: Sequence[Record], method: str) -> str:
    """Return in how many cells a method is nearer than integrated gradients with 50 points."""
    by_cell: dict[tuple[str, int], dict[str, float]] = {}
    for each in records:
        by_cell.setdefault((each["problem"], each["seed"]), {})[each["method"]] = each["distance"]
    return f"{sum(cell[method] < cell[BASELINE] for cell in by_cell.values())}/{len(by_cell)}"


def rows_of(records: Sequence[Record], problems: Sequence[str]) -> list[tuple[str, ...]]:
    """Lay out a row for each method: distance and milliseconds per sample on each problem."""
    points = points_of(records)
    along = on_front(points)
    rows = []
    for method in METHODS:
        of = [each for each in records if each["method"] == method.name]
        cells = [cell(of, name) for name in problems]
        time, distance = points[method.name]
        last = (
            f"{distance:.2f}",
            f"{time:.2f}",
            "yes" if method.name in along else "",
            nearer_than_baseline(records, method.name),
            f"{max(each['additivity'] for each in of):.0e}",
        )
        rows.append((method.name, *cells, *last))
    return rows


def cell(records: Sequence[Record], problem: str) -> str:
    """Show the mean distance and, in brackets, milliseconds per sample."""
    of = [each for each in records if each["problem"] == problem]
    ms = statistics.median(each["ms"] for each in of)
    return f"{statistics.fmean(each['distance'] for each in of):.3f} ({ms:.3g})"


def fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    """Return what tells the results of one run from another's."""
    return hashlib.sha256(json.dumps(list(records)).encode()).hexdigest()[:16]


def redraw() -> None:
    """Draw the results that are written."""
    records = json.loads((RESULTS / "truth_paths.json").read_text(encoding="utf-8"))["results"]
    ours = [method.name for method in OURS]
    draw(points_of(records), ours, RESULTS / "truth_paths.png", fingerprint(records))


def main() -> None:
    """Compare on all models."""
    options = arguments(
        "Distance to exact Shapley values of paths from references to samples.", ("paths", "cells")
    )
    if options.part == "cells":
        compare(options)
        return
    warnings.simplefilter("ignore")
    size, pairs = (QUICK, QUICK_PAIRS) if options.quick else (FULL, PAIRS)
    made = TWELVE | LARGER
    records: list[Record] = []
    for name, make in made.items():
        for seed in range(size.seeds):
            records += measured(name, seed, make(seed, size), pairs)
    fits = [
        f"{name} {statistics.fmean(each['fit'] for each in of):.3f}"
        for name in made
        if not math.isnan((of := [each for each in records if each["problem"] == name])[0]["fit"])
    ]
    errors = [
        f"{name} {max(each['truth'] for each in records if each['problem'] == name):.3f}" for name in LARGER
    ]
    notes = [
        f"{size.seeds} models each, {size.samples} samples ({size.larger} of the larger ones), "
        f"{size.references} references.",
        "Each cell: sum of |value - Shapley value| over sum of |Shapley value|, the mean over the models,",
        "and milliseconds per sample, the median. The explainer is made, and has run once, before.",
        "distance: over DeepSHAP's; time: over that of integrated gradients with 50 points; geometric means",
        "over all models. front: nothing is nearer in as little time. nearer: on how many of the models than",
        "integrated gradients with 50 points. additivity: worst |sum - (f(x) - mean f(references))|.",
        "12 inputs: brute force. The larger ones: players are single numbers, or a channel's numbers in a",
        f"part of the time; truth by {pairs} orders and their reverses, whose own error over the sum of the",
        f"values is at most: {', '.join(errors)}.",
        f"R², or accuracy on test data: {', '.join(fits)}.",
    ]
    header = ("method", *made, "distance", "time", "front", "nearer", "additivity")
    publish("truth_paths", options, header, rows_of(records, list(made)), notes, records)
    if not options.no_write:
        redraw()


if __name__ == "__main__":
    main()
