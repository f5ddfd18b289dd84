"""The oracles of ``benchmarks/truth.py`` are right, and it runs; what it measures is not asserted."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PATHS, CELLS = "## Along paths", "## Two players in a cell"
# Sums of some thousand float64 terms of size one.
ROUNDING = 1e-12


@pytest.fixture
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [each for each in sys.modules if each.split(".")[0] in ("timing", "truth", "problems")]:
        del sys.modules[name]


@pytest.fixture
def shapley(_benchmarks: None) -> ModuleType:
    return importlib.import_module("problems.truth.shapley")


@pytest.fixture
def lrp(_benchmarks: None) -> ModuleType:
    return importlib.import_module("problems.truth.lrp")


@pytest.fixture
def tasks(_benchmarks: None) -> ModuleType:
    return importlib.import_module("problems.truth.tasks")


def close(got: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(got, wanted, rtol=0, atol=ROUNDING), (got - wanted).abs().max()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_shapley_of_a_linear_function(shapley: ModuleType) -> None:
    weight, x, references = numbers(3, 2), numbers(3, 2), numbers(5, 3, 2)
    values = shapley.shapley_values(lambda rows: (rows * weight).sum((1, 2)), x, references)
    close(values, weight * (x - references.mean(0)))


def test_shapley_of_a_product_is_the_rule_for_products(shapley: ModuleType) -> None:
    (a, b), (a0, b0) = numbers(2), numbers(2)
    values = shapley.shapley_values(
        lambda rows: rows.prod(1, keepdim=True), torch.stack([a, b]), torch.stack([a0, b0])[None]
    )
    close(values, torch.stack([(a - a0) * (b + b0) / 2, (b - b0) * (a + a0) / 2]))


def test_shapley_of_unanimity_shares_equally_and_gives_dummies_nothing(shapley: ModuleType) -> None:
    x = torch.ones(7, dtype=torch.float64)
    values = shapley.shapley_values(lambda rows: rows[:, 1:5].prod(1), x, torch.zeros(1, 7).double())
    close(values, torch.tensor([0, 0.25, 0.25, 0.25, 0.25, 0, 0]).double())


def test_shapley_of_the_airport_game(shapley: ModuleType) -> None:
    """Littlechild and Owen 1973: each step of the runway is shared by those who need it."""
    costs = torch.tensor([1.0, 3.0, 3.5, 7.0]).double()
    values = shapley.shapley_values(lambda rows: rows.max(1).values, costs, torch.zeros(1, 4).double())
    steps = [1 / 4, 2 / 3, 0.5 / 2, 3.5]
    close(values, torch.tensor(list(itertools.accumulate(steps)), dtype=torch.float64))


def test_shapley_by_all_orders(shapley: ModuleType) -> None:
    net, x, references = nn.GRU(2, 3, batch_first=True).double(), numbers(2, 2), numbers(3, 2, 2)

    def f(rows: Tensor) -> Tensor:
        return net(rows)[0][:, -1].prod(1)

    total = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for order in itertools.permutations(range(4)):
            mixed = references.flatten(1).clone()
            for player in order:
                before = f(mixed.view(-1, 2, 2)).mean()
                mixed[:, player] = x.flatten()[player]
                total[player] += f(mixed.view(-1, 2, 2)).mean() - before
    close(shapley.shapley_values(f, x, references).flatten(), total / math.factorial(4))


def test_shapley_refuses_more_than_twelve_players_but_not_dummies(shapley: ModuleType) -> None:
    x = torch.ones(13)
    with pytest.raises(ValueError, match="at most 12 inputs unlike the references, got 13"):
        shapley.shapley_values(lambda rows: rows.sum(1), x, torch.zeros(1, 13))
    references = torch.zeros(1, 13)
    references[0, 4] = 1
    assert shapley.shapley_values(lambda rows: rows.sum(1), x, references)[4] == 0


@pytest.mark.parametrize("hidden", [1, 5])
def test_lrp_conserves_the_output_without_biases(lrp: ModuleType, tasks: ModuleType, hidden: int) -> None:
    net = tasks.Net("LSTM", 3, hidden, bias=False).double()
    x = numbers(6, 4, 3)
    relevance = lrp.lrp(net.rnn, net.head, x, epsilon=0.0)
    # Divisions by sums that nearly cancel lose digits that the other factor brings back only in part.
    error = (relevance.sum((1, 2)) - net(x).squeeze(-1)).abs().max()
    assert error < 1e-10


def test_lrp_loses_what_falls_to_biases_and_stabiliser(lrp: ModuleType, tasks: ModuleType) -> None:
    x = numbers(6, 4, 3)
    for bias, epsilon in ((True, 0.0), (False, 1e-2)):
        net = tasks.Net("LSTM", 3, 5, bias=bias).double()
        missing = lrp.lrp(net.rnn, net.head, x, epsilon=epsilon).sum((1, 2)) - net(x).squeeze(-1)
        assert missing.abs().max() > 1e-4


def test_lrp_is_gradient_times_input_of_a_network_with_frozen_ratios(
    lrp: ModuleType, tasks: ModuleType
) -> None:
    """With ε = 0: gates are constants, and an activation is a factor y / z, a constant as well."""
    net = tasks.Net("LSTM", 3, 5).double()
    x = numbers(6, 4, 3).requires_grad_()

    def scaled(z: Tensor) -> Tensor:
        return z * (z.tanh() / z).detach()

    h = c = torch.zeros(6, 5, dtype=torch.float64)
    for x_t in x.unbind(1):
        i, f, g, o = (
            nn.functional.linear(x_t, net.rnn.weight_ih_l0, net.rnn.bias_ih_l0)
            + nn.functional.linear(h, net.rnn.weight_hh_l0, net.rnn.bias_hh_l0)
        ).chunk(4, 1)
        c = f.sigmoid().detach() * c + i.sigmoid().detach() * scaled(g)
        h = o.sigmoid().detach() * scaled(c)
    (gradient,) = torch.autograd.grad(net.head(h).sum(), x)
    wanted = (gradient * x).detach()
    got = lrp.lrp(net.rnn, net.head, x.detach(), epsilon=0.0)
    assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-10), (got - wanted).abs().max()


def test_lrp_refuses_other_layers(lrp: ModuleType) -> None:
    for options in ({"num_layers": 2}, {"bidirectional": True}, {"proj_size": 2}, {"batch_first": False}):
        layer = nn.LSTM(3, 4, **({"batch_first": True} | options))
        with pytest.raises(ValueError, match="expected a plain LSTM"):
            lrp.lrp(layer, nn.Linear(4, 1), torch.zeros(1, 2, 3))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("layout", ["sparse", "marked"])
def test_sums_hold_what_they_say(tasks: ModuleType, layout: str, sign: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, positions, parts = tasks.sums(tasks.Task(layout, sign), 200, 5, generator)
    assert x.shape == (200, 5, 2)
    a, b = positions.T
    assert (a < b).all()
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == set(itertools.combinations(range(5), 2))
    first, second = x.gather(1, positions[..., None].expand(-1, -1, 2)).unbind(1)
    second_number = second[:, 1] if layout == "sparse" else second[:, 0]
    assert torch.equal(y.squeeze(-1), first[:, 0] + sign * second_number)
    assert torch.equal(parts, torch.stack([first[:, 0], sign * second_number], 1))
    if layout == "sparse":
        assert ((x != 0).sum((1, 2)) == 2).all()
    else:
        assert torch.equal(x[..., 1].sum(1), torch.full((200,), 2.0))
        assert (x[..., 0] != 0).all()
        assert (first[:, 1] == 1).all()
        assert (second[:, 1] == 1).all()


def test_training_is_seeded_and_learns(tasks: ModuleType) -> None:
    task = tasks.Task("sparse", -1)
    net, error = tasks.calculator(task, 0, 100)
    again, same = tasks.calculator(task, 0, 100)
    assert error == same
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    # The variance of the target is 2/3.
    assert error < 0.1


def test_stock_shap_takes_the_gradient_at_the_references(tasks: ModuleType) -> None:
    """What ``docs/concepts/truth.md`` says it does to a recurrent layer as it is."""
    shap = pytest.importorskip("shap")
    net, x, references = tasks.Net("LSTM", 3, 5).double(), numbers(2, 4, 3), numbers(6, 4, 3)
    leaf = references.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
    with pytest.warns(UserWarning, match="unrecognized nn.Module: LSTM"):
        got = shap.DeepExplainer(net, references).shap_values(x, check_additivity=False)
    close(torch.from_numpy(got).squeeze(-1), (gradient * (x[:, None] - references)).mean(1))


def test_docs_show_the_committed_run() -> None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for run in json.loads((BENCHMARKS / "results" / "truth.json").read_text(encoding="utf-8"))["results"]:
        found.setdefault((run["problem"], run["method"]), []).append(run)
    text = (BENCHMARKS.parent / "docs/concepts/truth.md").read_text(encoding="utf-8").split(PATHS)[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown: dict[tuple[str, str], str] = {}
    for line in lines:
        if line[0] == "method":
            problems = line[1:]
        else:
            shown |= {(problem, line[0]): cell for problem, cell in zip(problems, line[1:], strict=True)}

    def mean(runs: list[dict[str, float]], key: str) -> float:
        return statistics.fmean(run[key] for run in runs)

    for (problem, method), runs in found.items():
        ms = statistics.median(run["ms"] for run in runs)
        if "L1" not in runs[0]:
            figures = f"{mean(runs, 'rho a'):.3f} / {mean(runs, 'rho b'):.3f}"
        elif method != "exact Shapley":
            figures = f"{mean(runs, 'L1'):.2f} ({mean(runs, 'correlation'):.3f})"
        else:
            continue
        assert shown[problem, method] == f"{figures}, {ms:.1f}"
    assert {cell for key, cell in shown.items() if key not in found} == {"n/a"}


def test_docs_show_the_committed_run_of_cells() -> None:
    text = (BENCHMARKS.parent / "docs/concepts/truth.md").read_text(encoding="utf-8").split(CELLS)[1]
    text = text.split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    header, shown = cells[0], {row[0]: row[1:] for row in cells[1:]}
    runs = json.loads((BENCHMARKS / "results" / "truth_cells.json").read_text(encoding="utf-8"))["results"]
    assert [run["method"] for run in runs] == list(shown)
    models = [each for each in runs[0] if each not in ("method", "ratio", "additivity", "ms")]
    assert header == ["method", *models, "ratio", "ms"]
    for run in runs:
        means = [f"{statistics.fmean(run[each]):.3f}" for each in models]
        assert shown[run["method"]] == [*means, f"{run['ratio']:.2f}", f"{run['ms']:.1f}"]


@pytest.mark.usefixtures("_benchmarks")
def test_benchmark_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shap")
    pytest.importorskip("captum")
    results = BENCHMARKS / "results"
    before = {path: path.stat().st_mtime_ns for path in results.glob("truth*")}
    monkeypatch.setattr(sys, "argv", ["truth.py", "--quick", "--no-write"])
    importlib.import_module("truth").main()
    printed = capsys.readouterr().out
    assert printed.startswith("$ python benchmarks/truth.py --quick --no-write\n")
    rows = [line for line in printed.splitlines() if " ± " in line and "  " in line]
    # LSTM and GRU, the latter without LRP, trained, at random and at large weights; six arithmetic cases.
    assert len(rows) == 3 * (7 + 6) + 6 * 7
    additive = [row for row in rows if "exact Shapley" in row or "  ours " in row]
    assert len(additive) == 2 * (6 + 6)
    assert all(float(row.split()[-2]) < ROUNDING for row in additive)
    assert {path: path.stat().st_mtime_ns for path in results.glob("truth*")} == before
