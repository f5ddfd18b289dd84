"""What ``benchmarks/truth_paths.py`` and ``truth_references.py`` stand on, and that docs show their runs."""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter.plot.cost_front import on_front

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
BASELINE = "integrated gradients, 50 points"


@pytest.fixture
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [each for each in sys.modules if each.split(".")[0] in ("timing", "truth_paths", "problems")]:
        del sys.modules[name]


@pytest.fixture
def series(_benchmarks: None) -> ModuleType:
    return importlib.import_module("problems.truth.series")


@pytest.fixture
def paths(_benchmarks: None) -> ModuleType:
    for name in ("shap", "aeon", "matplotlib"):
        pytest.importorskip(name)
    return importlib.import_module("problems.truth.paths")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("_benchmarks")
def test_permutations_are_shapley_values_of_groups_within_their_error() -> None:
    """Brute force knows no groups: here they are players of a function that copies each to its elements."""
    permuted = importlib.import_module("problems.truth.permutations").permuted
    shapley = importlib.import_module("problems.truth.shapley").shapley_values
    groups = torch.tensor([[0, 1], [2, 1], [0, 3]])
    first = nn.Linear(6, 8)
    nn.init.normal_(first.weight, generator=seeded())
    net = nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(8, 1)).double()
    x, references = (torch.randn(n, 3, 2, generator=seeded(n)).double() for n in (1, 5))
    exact = torch.stack(
        [
            shapley(
                lambda z, r=r: net(torch.where(z[:, groups] > 0.5, x, r)),
                torch.ones(4).double(),
                torch.zeros(1, 4).double(),
            )
            for r in references
        ]
    ).mean(0)
    values, errors = permuted(net, x[0], references, groups, 2000, seeded())
    # Four standard errors, which are small beside the values.
    assert ((values - exact).abs() <= 4 * errors).all()
    assert errors.max() < 0.05 * exact.abs().max()
    with torch.no_grad():
        change = net(x) - net(references).mean(0)
    # Each reference as often as the others: additive, to rounding.
    assert abs(float(values.sum() - change)) < 1e-12


@pytest.mark.usefixtures("_benchmarks")
def test_two_orders_in_reverse_are_all_there_are_of_two_players() -> None:
    permuted = importlib.import_module("problems.truth.permutations").permuted

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.prod(1, keepdim=True)

    x, reference = torch.tensor([3.0, 5.0]).double(), torch.tensor([[1.0, 2.0]]).double()
    values, errors = permuted(Product(), x, reference, torch.arange(2), 2, seeded())
    assert values.tolist() == [2 * 3.5, 3 * 2.0]
    assert errors.tolist() == [0, 0]


def test_states_go_and_stay_as_published(series: ModuleType) -> None:
    states = series.states_of(4000, 60, seeded()).numpy()
    begun = np.zeros(60, int)
    stayed = np.zeros(60, int)
    left_zero = [0, 0]
    for row in states:
        lasted = None
        for before, after in itertools.pairwise(row):
            # The first state's age is not known: it was drawn before.
            if before == 1 and lasted is not None:
                begun[lasted] += 1
                stayed[lasted] += after
            if before == 0:
                left_zero[after] += 1
            if after != before:
                lasted = 0
            elif lasted is not None:
                lasted += 1
    rate = left_zero[1] / sum(left_zero)
    assert abs(rate - 0.05) < 5 * (0.05 * 0.95 / sum(left_zero)) ** 0.5
    for age in range(20):
        chance = 0.95 - age / 500
        assert abs(stayed[age] / begun[age] - chance) < 5 * (chance * (1 - chance) / begun[age]) ** 0.5


def test_state_data_have_the_published_moments_and_labels(series: ModuleType) -> None:
    data = series.state_data(2000, 50, seeded())
    assert (data.matters.sum(2) == 1).all()
    assert not data.matters[..., 0].any()
    for state, means in enumerate(([0.1, 1.6, 0.5], [-0.1, -0.4, -1.5])):
        feature = state + 1
        rows = data.matters[..., feature]
        x = data.x[rows]
        error = (0.801 / len(x)) ** 0.5
        assert (x.mean(0) - torch.tensor(means)).abs().max() < 5 * error
        wanted = 0.801 * torch.eye(3)
        wanted[0, feature] = wanted[feature, 0] = 0.01
        # The deviation of a variance of n normal numbers is √2 / √n of it.
        assert (x.T.cov() - wanted).abs().max() < 5 * 0.801 * (2 / len(x)) ** 0.5
        chance = 1 / (1 + (-2 * x[:, feature]).exp())
        y = data.y[rows]
        for low, high in itertools.pairwise((0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)):
            some = (chance >= low) & (chance < high)
            assert abs(float((y[some] - chance[some]).mean())) < 5 * 0.5 / int(some.sum()) ** 0.5


def test_arma_is_scipys_filter(series: ModuleType) -> None:
    """Crabbé and van der Schaar: lag polynomials 2, 0.5, 0.2, 0.1 of the series and 2 of the noise."""
    signal = pytest.importorskip("scipy.signal")
    got = series.arma(3, 30, 4, seeded()).numpy()
    noise = torch.randn(3, 30, 4, generator=seeded()).double().numpy()
    assert np.abs(got - signal.lfilter([2.0], [2.0, 0.5, 0.2, 0.1], noise, axis=1)).max() < 1e-13


@pytest.mark.parametrize(("kind", "steps", "features"), [("feature", 25, 5), ("time", 5, 25)])
def test_what_is_rare(series: ModuleType, kind: str, steps: int, features: int) -> None:
    matters = series.rare(kind, 50, 50, seeded())
    assert matters.any(1).sum() == steps
    assert matters.any(0).sum() == features
    assert matters.sum() == 125
    x = series.arma(2, 50, 50, seeded())
    assert torch.equal(series.WhiteBox(matters)(x)[1, 0], x[1][matters].square().sum()) or torch.allclose(
        series.WhiteBox(matters)(x)[1, 0], x[1][matters].square().sum(), rtol=1e-14
    )


def test_integrated_gradients_are_a_loops(paths: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, references = (torch.randn(n, 3, 2, generator=seeded(n)).double() for n in (2, 3))
    groups = torch.tensor([[0, 1], [1, 1], [2, 0]])
    monkeypatch.setattr(paths, "ROWS", 14)
    problem = importlib.import_module("problems.truth.models").Problem(net, x, references, groups, 0.0)
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for m, r, k in itertools.product(range(2), range(3), range(5)):
        at = (references[r] + (k + 0.5) / 5 * (x[m] - references[r])).requires_grad_()
        (gradient,) = torch.autograd.grad(net(at[None]).sum(), at)
        for t, f in itertools.product(range(3), range(2)):
            wanted[m, groups[t, f]] += (gradient * (x[m] - references[r]))[t, f].item() / 15
    assert (paths.integrated_gradients(problem, 5) - wanted).abs().max() < 1e-14


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = {
        "a": (1.0, 5.0),
        "b": (2.0, 6.0),
        "c": (3.0, 2.0),
        "d": (3.0, 2.5),
        "e": (9.0, 1.0),
        "f": (9.5, 1.0),
    }
    beaten = {
        name
        for (name, one), (other, two) in itertools.permutations(points.items(), 2)
        if two[0] <= one[0] and two[1] <= one[1] and two != one
    }
    assert on_front(points) == [name for name in points if name not in beaten] == ["a", "c", "e"]


def results(name: str) -> list[dict[str, Any]]:
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def tables(text: str) -> list[dict[tuple[str, str], str]]:
    """Return the cells of each table by the first cells of their row and column."""
    found: list[dict[tuple[str, str], str]] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
        elif line.startswith("|-"):
            continue
        elif not header:
            header = line.strip("| ").split(" | ")
            found.append({})
        else:
            row = [each.strip() for each in line[1:-1].split(" | ")]
            found[-1] |= {(row[0], column): cell for column, cell in zip(header[1:], row[1:], strict=True)}
    return found


def test_docs_show_the_committed_run_of_paths() -> None:
    text = (ROOT / "docs/concepts/truth.md").read_text(encoding="utf-8")
    shown: dict[tuple[str, str], str] = {}
    for table in tables(text.split("## Along paths")[1].split("\n## ")[0]):
        shown |= table
    runs = results("truth_paths")
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        cells.setdefault((run["method"], run["problem"]), []).append(run)
    for key, of in cells.items():
        distance, ms = (
            statistics.fmean(each["distance"] for each in of),
            statistics.median(e["ms"] for e in of),
        )
        assert shown.pop(key) == f"{distance:.3f} ({ms:.3g})", key
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    means = {
        name: (
            statistics.geometric_mean(
                a["ms"] / b["ms"] for a, b in zip(of, by_method[BASELINE], strict=True)
            ),
            statistics.geometric_mean(
                a["distance"] / b["distance"] for a, b in zip(of, by_method["DeepSHAP"], strict=True)
            ),
        )
        for name, of in by_method.items()
    }
    for name, (time, distance) in means.items():
        beaten = any(t <= time and d <= distance for other, (t, d) in means.items() if other != name)
        nearer = sum(
            a["distance"] < b["distance"] for a, b in zip(by_method[name], by_method[BASELINE], strict=True)
        )
        assert shown.pop((name, "distance")) == f"{distance:.2f}"
        assert shown.pop((name, "time")) == f"{time:.2f}"
        assert shown.pop((name, "front")) == ("" if beaten else "yes"), name
        assert shown.pop((name, "nearer")) == f"{nearer}/{len(by_method[name])}"
        for part, many in (("12", False), ("larger", True)):
            ratios = [
                (a["ms"] / b["ms"], a["distance"] / c["distance"])
                for a, b, c in zip(*(by_method[each] for each in (name, BASELINE, "DeepSHAP")), strict=True)
                # Their names end in the number of players.
                if a["problem"][-2:].isdigit() is many
            ]
            times, distances = (statistics.geometric_mean(each) for each in zip(*ratios, strict=True))
            assert shown.pop((name, f"time, {part}")) == f"{times:.2f}"
            assert shown.pop((name, f"distance, {part}")) == f"{distances:.2f}"
    assert not shown


@pytest.mark.usefixtures("_benchmarks")
def test_the_plot_is_of_the_committed_run() -> None:
    for name in ("shap", "aeon", "matplotlib"):
        pytest.importorskip(name)
    image = pytest.importorskip("PIL.Image")
    module = importlib.import_module("truth_paths")
    with image.open(BENCHMARKS / "results" / "truth_paths.png") as drawn:
        assert drawn.info["Description"] == module.fingerprint(results("truth_paths"))
    assert "truth_paths.png" in (ROOT / "docs/concepts/truth.md").read_text(encoding="utf-8")


def test_docs_show_the_committed_run_of_references() -> None:
    text = (ROOT / "docs/guides/choose_a_background.md").read_text(encoding="utf-8")
    shown = [table for table in tables(text) if ("zeros", "ours") in table]
    runs = results("truth_references")
    problems = list(dict.fromkeys(run["problem"] for run in runs))
    assert len(shown) == len(problems)
    for problem, table in zip(problems, shown, strict=True):
        cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in runs:
            if run["problem"] == problem:
                cells.setdefault((run["references"], run["method"]), []).append(run)
        for key, of in cells.items():
            first, second = (statistics.fmean(each[name] for each in of) for name in ("first", "second"))
            ms = statistics.median(each["ms"] for each in of)
            assert table.pop(key) == f"{first:.3f} / {second:.3f} ({ms:.3g})", (problem, key)
        assert not table
