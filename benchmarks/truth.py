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
from problems.truth.methods import EXACT, LRP, METHODS, target
from problems.truth.tasks import (
    LENGTHS,
    Net,
    Sums,
    Task,
    calculator,
    interactions,
    nonlinear,
    sums,
    untrained,
)
from timing import arguments, publish
from torch import Generator, Tensor

from rewriter.compiler.report import render_table

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


FULL = Effort(5, 8, 10, 5, tuple(LENGTHS), {"nonlinear": 1500, "sparse": 3000, "marked": 2500})
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
    """Return the attributions of every method, what they miss of their sum, and milliseconds per sample.

    Args:
        net: the model.
        x: samples (B, T, features).
        references: (N, T, features) for all samples, or (B, N, T, features), some for each.
        skip: methods.

    """
    own = references.dim() > x.dim()
    parts = list(zip(x.split(1), references, strict=True)) if own else [(x, references)]
    found = {}
    for name in [name for name in METHODS if name not in skip]:
        start = time.perf_counter()
        values = torch.cat([METHODS[name](net, *part) for part in parts]).detach()
        spent = (time.perf_counter() - start) / len(x) * 1e3
        wanted = torch.cat([target(name, net, *part) for part in parts])
        found[name] = values, {"additivity": additivity(values, wanted), "ms": spent}
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


def of_zeros(x: Tensor) -> Tensor:
    """Return one reference for all samples: no numbers, no marks."""
    return torch.zeros_like(x[:1])


def of_marks(x: Tensor) -> Tensor:
    """Return a reference for each sample: its marks, no numbers."""
    return (x * torch.tensor([0, 1], dtype=x.dtype))[:, None]


def arithmetic_part(effort: Effort) -> Results:
    """Compare with the numbers that an LSTM adds or subtracts."""
    results: Results = defaultdict(list)
    for task, seed in itertools.product(TASKS, range(effort.seeds)):
        net, error = calculator(task, seed, effort.updates[task.layout])
        generator = Generator().manual_seed(SAMPLE_SEED + seed)
        batches = [sums(task, effort.per_length, steps, generator) for steps in effort.lengths]
        parts = torch.cat([batch.parts for batch in batches]).double()
        name = f"{task.layout}, {'add' if task.sign > 0 else 'subtract'}"
        cases = {name: of_zeros} if task.layout == "sparse" else {name: of_zeros, f"{name} *": of_marks}
        for problem, references in cases.items():
            runs = [explained(net, batch.x.double(), references(batch.x.double())) for batch in batches]
            for method in METHODS:
                found = [run[method] for run in runs]
                pairs = [judged(values, batch) for (values, _), batch in zip(found, batches, strict=True)]
                right, share = (torch.cat(each) for each in zip(*pairs, strict=True))
                results[problem, method].append(
                    {
                        "share": float(share.mean()),
                        "rho a": correlation(right[:, 0], parts[:, 0]),
                        "rho b": correlation(right[:, 1], parts[:, 1]),
                        "off by": float((right - parts).pow(2).mean().sqrt()),
                        "additivity": max(measures["additivity"] for _, measures in found),
                        "ms": statistics.median(measures["ms"] for _, measures in found),
                        "model": error,
                    }
                )
    return ordered(results)


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


def fits(results: Results, form: str) -> str:
    """Say how good the trained models are."""
    of_problem = {problem: runs for (problem, name), runs in results.items() if name == EXACT}
    shown = {
        problem: statistics.fmean(run["model"] for run in runs)
        for problem, runs in of_problem.items()
        if "random" not in problem and "*" not in problem
    }
    return "; ".join(f"{problem} {value:{form}}" for problem, value in shown.items())


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
        "values, absolute (L1) and root of squares (L2); how often the largest value is the same one.",
        "additivity: worst |sum - (f(x) - mean f(references))|, of LRP |sum - f(x)|, over max(1, largest).",
        "ms: per sample, the explainer's construction included.",
        "5 x random: the initial weights of the recurrent layer, five times as large.",
        f"R² of the trained ones: {fits(shapley, '.3f')}.",
        "",
        *second.splitlines(),
        "",
        f"{effort.seeds} models each, {effort.per_length} samples for each of {effort.lengths} steps.",
        "The reference is zero; for *, the sample itself with its marks kept and its numbers zero.",
        "share: of relevance, absolute, on the two steps that count. rho: correlation of their relevance",
        "with n_a, and with n_b or -n_b. off by: the root of the mean squared difference from these.",
        f"squared error of the models, 0.67 being that of a constant: {fits(arithmetic, '.1e')}.",
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
