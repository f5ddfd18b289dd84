"""How much the choice of references matters, beside that of the method, where it is known what is right."""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from problems.truth.series import WhiteBox, arma, classifier, rare, state_data
from problems.truth.tasks import Task, calculator, sums
from sklearn.metrics import average_precision_score, roc_auc_score
from timing import arguments, publish
from torch import Generator, Tensor, nn

from rewriter import DeepExplainer, compare_references, propose_references

IG, OURS, NEAR, GRADIENT = "integrated gradients", "ours", 'ours, accuracy="near"', "gradient x input"
METHODS = (OURS, NEAR, IG, GRADIENT)
POINTS = 20
Record = dict[str, Any]


class Effort(NamedTuple):
    """How much is measured.

    Args:
        seeds: models of each kind.
        samples: explained of each.
        references: of each set but zeros and the mean.
        steps: of the series of states.
        updates: of the training of their classifier, and of the one that subtracts.

    """

    seeds: int
    samples: int
    references: int
    steps: int
    updates: tuple[int, int]


FULL, QUICK = Effort(2, 6, 8, 100, (150, 2500)), Effort(1, 2, 2, 5, (1, 1))


def sets_of(data: Tensor, count: int, seed: int, held: Any = None) -> dict[str, Any]:
    """Return the sets of references that are compared, by name."""
    rows = torch.randperm(len(data), generator=Generator().manual_seed(seed))[:count]
    proposed = propose_references(data, count, seed=seed)
    sets = {
        "zeros": torch.zeros_like(data[:1]),
        "mean": data.mean(0, keepdim=True),
        "drawn": data[rows],
        **proposed,
    }
    if held is not None:
        for name, make in propose_references(data, count, held=held, seed=seed).items():
            sets[f"{name}, held"] = make
    return sets


def of_each(given: Any, x: Tensor) -> Tensor:
    """Return references (M, N, *shape)."""
    return given(x) if callable(given) else given.expand(len(x), *given.shape)


def values_of(method: str, net: nn.Module, explainer: DeepExplainer, x: Tensor, references: Tensor) -> Tensor:
    """Return the values of a method, like x."""
    if method in (OURS, NEAR):
        nearer = {"accuracy": "near"} if method == NEAR else {}
        return torch.from_numpy(explainer.shap_values(x, references=references, **nearer)).view_as(x)
    if method == GRADIENT:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
        return gradient * (x - references.mean(1))
    moves = x[:, None] - references
    total = torch.zeros_like(x)
    for k in range(POINTS):
        at = (references + (k + 0.5) / POINTS * moves).flatten(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(net(at).sum(), at)
        total += (gradient.view_as(moves) * moves).mean(1)
    return total / POINTS


def timed(
    methods: tuple[str, ...], net: nn.Module, data: Tensor, x: Tensor, sets: dict[str, Any]
) -> dict[tuple[str, str], tuple[Tensor, float]]:
    """Return values and milliseconds per sample by set and method."""
    explainer = DeepExplainer(net, data[:2], progress=False)
    explainer.shap_values(x[:1])
    found = {}
    for (name, given), method in ((pair, method) for pair in sets.items() for method in methods):
        references = of_each(given, x)
        start = time.perf_counter()
        values = values_of(method, net, explainer, x, references)
        found[name, method] = values, (time.perf_counter() - start) / len(x) * 1e3
    return found


def ranked(values: Tensor, matters: Tensor) -> dict[str, float]:
    """Judge sizes of values by what matters: areas under the curves of rates, and of precision and recall."""
    truth, size = matters.flatten().numpy(), values.abs().flatten().numpy()
    return {
        "first": float(roc_auc_score(truth, size)),
        "second": float(average_precision_score(truth, size)),
    }


def correlation(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def state_part(effort: Effort, records: list[Record], notes: list[str]) -> None:
    """Compare with the feature that makes the label in each state."""
    for seed in range(effort.seeds):
        generator = Generator().manual_seed(seed)
        data = state_data(800, effort.steps, generator)
        test = state_data(effort.samples, effort.steps, generator)
        net = classifier(data, seed, effort.updates[0])
        with torch.no_grad():
            guessed = net.odds(test.x.double())
        # What the label is drawn from.
        truth = 2 * test.x[test.matters].view_as(test.y)
        fit = correlation(guessed.flatten(), truth.double().flatten())
        x, rows = test.x.double(), data.x.double()
        sets = sets_of(rows, effort.references, seed)
        methods = (OURS, IG, GRADIENT)
        for (name, method), (values, ms) in timed(methods, net, rows, x, sets).items():
            found = ranked(values, test.matters)
            records.append(record("state, GRU 200", name, method, seed, ms, fit, found))
        if seed == 0:
            report = compare_references(DeepExplainer(net, rows[:2], progress=False), x, sets)
            notes += ["", f"compare_references, state, {effort.samples} samples, first model:", ""]
            notes += str(report).splitlines()


def white_box_part(effort: Effort, records: list[Record]) -> None:
    """Compare with what a white box squares."""
    for kind in ("feature", "time"):
        for seed in range(effort.seeds):
            generator = Generator().manual_seed(seed)
            data = arma(100 + effort.samples, 50, 50, generator)
            matters = rare(kind, 50, 50, generator)
            x, rows = data[100:], data[:100]
            sets = sets_of(rows, effort.references, seed)
            methods = (OURS, IG, GRADIENT)
            for (name, method), (values, ms) in timed(methods, WhiteBox(matters), rows, x, sets).items():
                found = ranked(values, matters.expand(len(x), -1, -1))
                records.append(record(f"ARMA, rare {kind}", name, method, seed, ms, float("nan"), found))


def marked_part(effort: Effort, records: list[Record]) -> None:
    """Compare with the numbers that an LSTM subtracts, which marks tell from others."""
    task = Task("marked", -1)
    for seed in range(effort.seeds):
        net, error = calculator(task, seed, effort.updates[1])
        generator = Generator().manual_seed(1000 + seed)
        data, test = sums(task, 300, 8, generator), sums(task, 8 * effort.samples, 8, generator)
        x, rows = test.x.double(), data.x.double()
        sets = sets_of(rows, effort.references, seed, held=[False, True])
        for (name, method), (values, ms) in timed(METHODS, net, rows, x, sets).items():
            right = values.sum(2).gather(1, test.positions)
            parts = test.parts.double()
            found = {
                "first": correlation(right[:, 0], parts[:, 0]),
                "second": correlation(right[:, 1], parts[:, 1]),
            }
            records.append(record("marked, subtract", name, method, seed, ms, error, found))


def record(
    problem: str, name: str, method: str, seed: int, ms: float, fit: float, found: dict[str, float]
) -> Record:
    """Return one result."""
    which = {"problem": problem, "references": name, "method": method, "seed": seed}
    return which | {"ms": ms, "fit": fit} | found


def rows_of(records: list[Record]) -> list[tuple[str, ...]]:
    """Lay out a row for each problem and set of references, a column for each method."""
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    by_cell: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for each in records:
        by_cell[each["problem"], each["references"], each["method"]].append(each)
    for (problem, name, method), of in by_cell.items():
        first, second = (statistics.fmean(each[key] for each in of) for key in ("first", "second"))
        ms = statistics.median(each["ms"] for each in of)
        cells[problem, name][method] = f"{first:.3f} / {second:.3f} ({ms:.3g})"
    return [(*key, *(found.get(method, "-") for method in METHODS)) for key, found in cells.items()]


def main() -> None:
    """Run the three parts."""
    options = arguments("How much the choice of references matters.")
    warnings.simplefilter("ignore")
    effort = QUICK if options.quick else FULL
    records: list[Record] = []
    reports: list[str] = []
    state_part(effort, records, reports)
    white_box_part(effort, records)
    marked_part(effort, records)
    fits = {each["problem"]: each["fit"] for each in records}
    notes = [
        f"{effort.seeds} models each, {effort.samples} samples ({8 * effort.samples} of the marked task), "
        f"{effort.references} references, one of zeros",
        f"and of the mean. Integrated gradients with {POINTS} points. In brackets milliseconds per sample.",
        f"state: {effort.steps} steps; ARMA: 50 steps of 50 features: areas under the curve of rates / of",
        "precision and recall, by sizes of values. marked: correlation of the values of the two steps that",
        "count with n_a / with -n_b; held: marks are those of the sample.",
        f"Correlation of the GRU's log-odds with the true ones {fits['state, GRU 200']:.2f}; squared error",
        f"of the LSTM that subtracts {fits['marked, subtract']:.1e}.",
        *reports,
    ]
    publish(
        "truth_references", options, ("problem", "references", *METHODS), rows_of(records), notes, records
    )


if __name__ == "__main__":
    main()
