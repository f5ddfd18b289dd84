"""How true are the values? Attributions beside exact Shapley values, and where the right answer is known.

Models are small and in float64, so that what is seen is the method and not rounding.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from timing import arguments, publish
from torch import Generator, Tensor
from truth_methods import EXACT, LRP, METHODS, target
from truth_tasks import LENGTHS, Net, Sums, Task, calculator, interactions, nonlinear, sums, untrained

from rewriter._report import render_table

TASKS = [Task(layout, sign) for layout in ("sparse", "marked") for sign in (1, -1)]
SAMPLE_SEED = 1000
Measures = dict[str, float]
# By problem and method, one of a model.
Results = dict[tuple[str, str], list[Measures]]


class Effort(NamedTuple):
    """How much is measured.

    Args:
        seeds: models of each kind.
        references: of the comparison with exact Shapley values.
        samples: explained per model there.
        per_length: samples explained per model and length, of the arithmetic tasks.
        lengths: of these samples.
        updates: of the training of the nonlinear task and of the sparse and marked arithmetic ones.

    """

    seeds: int
    references: int
    samples: int
    per_length: int
    lengths: tuple[int, ...]
    updates: dict[str, int]


FULL = Effort(5, 8, 10, 6, tuple(LENGTHS), {"nonlinear": 1500, "sparse": 3000, "marked": 3000})
QUICK = Effort(1, 2, 1, 2, (4,), {"nonlinear": 5, "sparse": 5, "marked": 5})


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation; nan if one of them does not vary."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))


def additivity(values: Tensor, wanted: Tensor) -> float:
    """Return max |sum of attributions - what they should sum to| over max(1, the largest of the latter)."""
    return float((values.flatten(1).sum(1) - wanted).abs().max() / max(1.0, float(wanted.abs().max())))


def distances(values: Tensor, truth: Tensor) -> Measures:
    """Compare attributions with exact Shapley values, all over a batch."""
    values, truth = values.flatten(1), truth.flatten(1)
    return {
        "correlation": statistics.fmean(map(correlation, values, truth)),
        "L1": float((values - truth).abs().sum() / truth.abs().sum()),
        "L2": float((values - truth).norm() / truth.norm()),
        "same top": float((values.abs().argmax(1) == truth.abs().argmax(1)).double().mean()),
    }


def explained(
    net: Net, x: Tensor, references: Tensor, *, skip: Iterable[str] = ()
) -> dict[str, tuple[Tensor, Measures]]:
    """Return the attributions of every method, what they miss of their sum, and milliseconds per sample."""
    found = {}
    for name, explain in METHODS.items():
        if name in skip:
            continue
        start = time.perf_counter()
        values = explain(net, x, references).detach()
        spent = (time.perf_counter() - start) / len(x) * 1e3
        found[name] = (
            values,
            {"additivity": additivity(values, target(name, net, x, references)), "ms": spent},
        )
    return found


def shapley_part(effort: Effort) -> Results:
    """Compare with exact Shapley values: LSTM and GRU, trained, at random, and at large random weights."""
    results: Results = defaultdict(list)
    for kind in ("LSTM", "GRU"):
        for seed in range(effort.seeds):
            trained, explains = nonlinear(kind, seed, effort.updates["nonlinear"])
            nets = {
                f"{kind}, trained": (trained, explains),
                f"{kind}, random": (untrained(kind, seed, 1), 0.0),
                f"{kind}, 5 x random": (untrained(kind, seed, 5), 0.0),
            }
            generator = Generator().manual_seed(SAMPLE_SEED + seed)
            x = interactions(effort.samples, generator)[0].double()
            references = interactions(effort.references, generator)[0].double()
            for problem, (net, fit) in nets.items():
                found = explained(net, x, references, skip=[LRP] if kind == "GRU" else [])
                truth = found[EXACT][0]
                for name, (values, measures) in found.items():
                    results[problem, name].append(distances(values, truth) | measures | {"model": fit})
    return ordered(results)


def judged(found: Tensor, batch: Sums) -> tuple[Tensor, Tensor]:
    """Return the relevance of the steps that hold the two numbers (B, 2), and its share (B,) of all."""
    steps = found.sum(2)
    right = steps.gather(1, batch.positions)
    return right, right.abs().sum(1) / steps.abs().sum(1)


def arithmetic_part(effort: Effort) -> Results:
    """Compare with the numbers that an LSTM adds or subtracts; the reference is a sequence of zeros."""
    results: Results = defaultdict(list)
    for task, seed in itertools.product(TASKS, range(effort.seeds)):
        net, error = calculator(task, seed, effort.updates[task.layout])
        generator = Generator().manual_seed(SAMPLE_SEED + seed)
        batches = [sums(task, effort.per_length, steps, generator) for steps in effort.lengths]
        runs = [explained(net, b.x.double(), torch.zeros_like(b.x[:1]).double()) for b in batches]
        parts = torch.cat([batch.parts for batch in batches]).double()
        for name in METHODS:
            pairs = [judged(run[name][0], batch) for run, batch in zip(runs, batches, strict=True)]
            right, share = (torch.cat(each) for each in zip(*pairs, strict=True))
            results[f"{task.layout}, {'add' if task.sign > 0 else 'subtract'}", name].append(
                {
                    "share": float(share.mean()),
                    "rho a": correlation(right[:, 0], parts[:, 0]),
                    "rho b": correlation(right[:, 1], parts[:, 1]),
                    "off by": float((right - parts).pow(2).mean().sqrt()),
                    "additivity": max(run[name][1]["additivity"] for run in runs),
                    "ms": statistics.median(run[name][1]["ms"] for run in runs),
                    "model": error,
                }
            )
    return results


def ordered(results: Results) -> Results:
    """Sort by problem and then by method, both in the order of their first appearance."""
    problems = list(dict.fromkeys(problem for problem, _ in results))
    return dict(sorted(results.items(), key=lambda item: problems.index(item[0][0])))


def spread(runs: list[Measures], key: str) -> str:
    """Show the mean over the models, and their standard deviation."""
    values = [run[key] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def rows_of(results: Results, keys: Iterable[str]) -> list[tuple[str, ...]]:
    """Lay out one row for each problem and method, the problem named once."""
    rows, before = [], None
    for (problem, method), runs in results.items():
        shown = [spread(runs, key) for key in keys]
        worst = max(run["additivity"] for run in runs)
        cost = statistics.median(run["ms"] for run in runs)
        rows.append(("" if problem == before else problem, method, *shown, f"{worst:.0e}", f"{cost:.2g}"))
        before = problem
    return rows


def fits(results: Results) -> str:
    """Say how good the models are."""
    shown = {problem: spread(runs, "model") for (problem, name), runs in results.items() if name == EXACT}
    return ", ".join(f"{problem} {value}" for problem, value in shown.items() if "random" not in problem)


def main() -> None:
    """Run both parts."""
    options = arguments("Attributions beside exact Shapley values, and on arithmetic tasks.")
    # What shap says of the layers as they are is part of what is measured.
    warnings.simplefilter("ignore")
    effort = QUICK if options.quick else FULL
    shapley, arithmetic = shapley_part(effort), arithmetic_part(effort)
    distance, arithmetic_keys = ("correlation", "L1", "L2", "same top"), ("share", "rho a", "rho b", "off by")
    last = ("additivity", "ms")
    second = render_table(("task", "method", *arithmetic_keys, *last), rows_of(arithmetic, arithmetic_keys))
    notes = [
        f"{effort.seeds} models each, {effort.samples} samples of 4 x 3 numbers, {effort.references} "
        "references; mean ± deviation over the models.",
        "Against exact Shapley values: correlation of a sample's 12 values; sum of differences over sum of",
        "values, absolute (L1) and squared (L2); how often the largest value is the same one.",
        "additivity: worst |sum - (f(x) - mean f(references))|, of LRP |sum - f(x)|, over max(1, largest).",
        "ms: per sample. 5 x random: the initial weights of the recurrent layer, five times as large.",
        f"R²: {fits(shapley)}.",
        "",
        *second.splitlines(),
        "",
        f"{effort.seeds} models each, {effort.per_length} samples for each of {effort.lengths} steps, the",
        "reference is zero. share: of relevance, absolute, on the two steps that count. rho: correlation of",
        "their relevance with n_a, and with n_b or -n_b. off by: the root of the mean squared difference.",
        f"squared error of the models: {fits(arithmetic)}.",
    ]
    records = [
        {"problem": problem, "method": method, "seed": seed, **run}
        for results in (shapley, arithmetic)
        for (problem, method), runs in results.items()
        for seed, run in enumerate(runs)
    ]
    publish(
        "truth", options, ("model", "method", *distance, *last), rows_of(shapley, distance), notes, records
    )


if __name__ == "__main__":
    main()
