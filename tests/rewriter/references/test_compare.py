"""How much depends on references: against formulas of a linear model, and references left out one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, compare_references, propose_references

DOUBLE = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Last(nn.Module):
    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = Last()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(x + y)


class Weighed(nn.Module):
    """Linear, of one output (B,)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.numel(), 1, bias=False).double()
        self.linear.weight.data = weight.reshape(1, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))[:, 0]


def test_of_a_linear_model_by_formulas() -> None:
    weight, x = drawn(3, 2), drawn(4, 3, 2, seed=1)
    sets = {"own": drawn(4, 5, 3, 2, seed=2), "shared": drawn(6, 3, 2, seed=3), "zeros": torch.zeros(1, 3, 2)}
    sets["zeros"] = sets["zeros"].double()
    report = compare_references(DeepExplainer(Weighed(weight), drawn(7, 3, 2)), x, sets)
    means = {"own": sets["own"].mean(1), "shared": sets["shared"].mean(0), "zeros": sets["zeros"][0]}
    wanted = {name: weight * (x - mean) for name, mean in means.items()}
    for name, values in wanted.items():
        assert report.values[name].shape == (4, 3, 2)
        assert np.abs(report.values[name] - values.numpy()).max() < 1e-13
    # A mean of n numbers has the error s / √n, s with n - 1.
    wide = {"own": sets["own"].std(1), "shared": sets["shared"].std(0).expand(4, 3, 2)}
    for name, deviation in wide.items():
        error = weight.abs() * deviation / math.sqrt(report.numbers[name])
        assert np.abs(report.errors[name] - error.numpy()).max() < 1e-13
        share = float(error.sum() / wanted[name].abs().sum())
        assert abs(report.draw(name) - share) < 1e-12
    assert np.isnan(report.errors["zeros"]).all()
    assert math.isnan(report.draw("zeros"))
    assert report.numbers == {"own": 5, "shared": 6, "zeros": 1}
    a, b = wanted["own"], wanted["shared"]
    distance = float((a - b).abs().sum() / (a.abs().sum() + b.abs().sum())) * 2
    assert abs(report.distance("own", "shared") - distance) < 1e-12
    same = float((a.flatten(1).abs().argmax(1) == b.flatten(1).abs().argmax(1)).double().mean())
    assert report.same_largest("own", "shared") == same


def test_errors_are_the_jackknifes() -> None:
    """Tukey 1958: (n - 1) / n times the sum of squares of what leaving one out changes."""
    model, x, references = Last().double(), drawn(3, 5, 2), drawn(6, 5, 2, seed=1)
    explainer = DeepExplainer(model, references)
    report = compare_references(explainer, x, {"set": references})
    whole = explainer.shap_values(x)
    assert np.abs(report.values["set"] - whole).max() < 1e-14
    without = [
        DeepExplainer(model, torch.cat([references[:n], references[n + 1 :]])).shap_values(x)
        for n in range(6)
    ]
    jackknife = np.sqrt(5 / 6 * sum((each - np.mean(without, 0)) ** 2 for each in without))
    assert np.abs(report.errors["set"] - jackknife).max() < 1e-14


def test_functions_are_asked_once_and_give_what_the_explainer_gives() -> None:
    model, data, x = Last().double(), drawn(20, 5, 2), drawn(3, 5, 2, seed=1)
    explainer = DeepExplainer(model, data)
    proposed = propose_references(data, 4, held=[False, True])
    asked = []

    def counted(samples: Tensor) -> Tensor:
        asked.append(len(samples))
        return proposed["permuted"](samples)

    report = compare_references(explainer, x, proposed | {"permuted": counted})
    assert asked == [3]
    for name, make in proposed.items():
        assert np.abs(report.values[name] - explainer.shap_values(x, references=make)).max() < 1e-13
    assert list(report.values) == ["medoids", "permuted", "conditional"]
    pairs = [("medoids", "permuted"), ("medoids", "conditional"), ("permuted", "conditional")]
    assert report.dependence == max(report.distance(*pair) for pair in pairs)
    assert compare_references(explainer, x, {"one": data}).dependence == 0


def test_signs_count_where_all_sets_have_them_beyond_two_errors() -> None:
    x = torch.ones(1, 4, 1, dtype=DOUBLE)
    # Values are 1 - r: sure; of two signs; of one sign, but within two errors (1 and 2·0.5); not there.
    one = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, -0.5, 1.0]]).double()
    other = torch.tensor([[0.5, 2.0, 0.0, 1.0], [0.5, 2.0, 0.0, 1.0]]).double()
    explainer = DeepExplainer(Weighed(torch.ones(4, dtype=DOUBLE)), one.unsqueeze(2))
    report = compare_references(explainer, x, {"one": one.unsqueeze(2), "other": other.unsqueeze(2)})
    assert report.same_sign.shape == (1, 4, 1)
    assert report.same_sign[0, :, 0].tolist() == [True, False, False, False]


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sequence, self.static = Last(1), nn.Linear(3, 1)

        def forward(self, x: Tensor, s: Tensor) -> Tensor:
            return self.sequence(x) * self.static(s)

    data, x = [drawn(9, 5, 2), drawn(9, 3)], [drawn(2, 5, 2, seed=1), drawn(2, 3, seed=2)]
    model = Two().double()
    explainer = DeepExplainer(model, data)
    proposed = propose_references(data, 3)
    report = compare_references(explainer, x, proposed)
    for name, make in proposed.items():
        wanted = explainer.shap_values(x, references=make)
        assert [each.shape for each in report.values[name]] == [(2, 5, 2, 1), (2, 3, 1)]
        assert all(np.abs(a - b).max() < 1e-13 for a, b in zip(report.values[name], wanted, strict=True))
        assert report.by_sample[name].shape == (2, 13, 1)
        # All inputs together add up.
        with torch.no_grad():
            made = [each.flatten(0, 1) for each in make(x)]
            change = model(*x)[:, 0] - model(*made).view(2, 3).mean(1)
        assert np.abs(report.by_sample[name].sum(1)[:, 0] - change.numpy()).max() < 1e-13


def test_arrays_in_float64_of_a_model_in_float32() -> None:
    data, x = drawn(9, 5, 2).numpy(), drawn(2, 5, 2, seed=1).numpy()
    model = Last()
    explainer = DeepExplainer(model, data)
    proposed = propose_references(data, 3, held=[False, True])
    assert all(make(torch.from_numpy(x).float()).dtype == torch.float32 for make in proposed.values())
    report = compare_references(explainer, x, proposed | {"data": data})
    for name, make in proposed.items():
        wanted = explainer.shap_values(x, references=make)
        # Float32, sums of three.
        assert np.abs(report.values[name] - wanted).max() < 1e-6
    assert np.abs(report.values["data"] - explainer.shap_values(x)).max() < 1e-6
    with pytest.raises(RewriteError, match=r"X: expected one tensor like the background, got list"):
        compare_references(explainer, [x], proposed)


def test_it_reads_as_a_table() -> None:
    x = torch.ones(2, 2, 1, dtype=DOUBLE)
    explainer = DeepExplainer(Weighed(torch.ones(2, dtype=DOUBLE)), torch.zeros(1, 2, 1, dtype=DOUBLE))
    sets = {"zeros": torch.zeros(1, 2, 1).double(), "pair": torch.tensor([[[0.0], [2]], [[0], [2]]]).double()}
    lines = str(compare_references(explainer, x, sets)).splitlines()
    assert lines[0].split() == ["references", "number", "sum", "draw", "zeros", "pair"]
    # Values 1, 1 and 1, -1: they differ by 2 of 2, and add up to 2 and to 0; equal references have no error.
    assert lines[2].split() == ["zeros", "1", "2", "-", "-", "1.00", "(100%)"]
    assert lines[3].split() == ["pair", "2", "0", "0.00", "1.00", "(100%)", "-"]
    assert lines[-1] == "50% of the values have one sign whatever the references."


def test_the_page_about_references_runs() -> None:
    page = (Path(__file__).parents[3] / "docs/guides/choose_a_background.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], found)
    assert set(found["report"].values) == {"medoids", "permuted", "zeros"}
    wanted = np.abs(found["report"].values["permuted"] - found["values"]).max()
    # Float32, sums of eight.
    assert wanted < 1e-5


def test_refused() -> None:
    x = drawn(3, 5, 2)
    explainer = DeepExplainer(Last().double(), x)
    with pytest.raises(RewriteError, match="references: expected at least one set, by name, got none"):
        compare_references(explainer, x, {})
    with pytest.raises(RewriteError, match="X: expected at least one sample, got none"):
        compare_references(explainer, x[:0], {"all": x})
    for wrong in (drawn(2, 4, 5, 2), drawn(4, 6, 2), drawn(3, 0, 5, 2), drawn(5, 2)):
        with pytest.raises(RewriteError, match=r"references\['wrong'\], input 0: expected references"):
            compare_references(explainer, x, {"right": x, "wrong": wrong})
    with pytest.raises(RewriteError, match=r"references\['wrong'\]: expected 1 inputs like the background"):
        compare_references(explainer, x, {"wrong": [x, x]})
    two = DeepExplainer(Added().double(), [x, x])
    with pytest.raises(RewriteError, match=r"references\['wrong'\]: expected as many references for each"):
        compare_references(two, [x, x], {"wrong": [x, x[:2]]})


def test_of_tokens_and_of_a_layer() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rest = nn.Embedding(9, 2), Last()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.embedding(x))

    model = Reader().double()
    data = torch.randint(0, 9, (12, 5), generator=torch.Generator().manual_seed(0))
    proposed = propose_references(data, 3)
    tokens = compare_references(DeepExplainer(model, data), data[:2], proposed)
    layer = compare_references(DeepExplainer((model, model.embedding), data), data[:2], proposed)
    for name in proposed:
        assert tokens.values[name].shape == (2, 5, 2)
        assert layer.values[name].shape == (2, 5, 2, 2)
        assert layer.by_sample[name].shape == (2, 10, 2)
        # A token's value is the sum over the features of what is looked up.
        assert np.abs(layer.values[name].sum(2) - tokens.values[name]).max() < 1e-14
