"""What a comparison prints fits a screen and says where to look; its JSON says how it was made."""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter import check_equivalence, decompose
from rewriter.equivalence.provenance import hash_of_weights


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.fc(self.norm(x)))


class Deep(nn.Module):
    """A model of 160 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([Block() for _ in range(38)])
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.gru(x)[0][:, -1])


def with_fault(model: Deep, place: str) -> Deep:
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.get_parameter(place).view(-1)[0] += 0.1
    return wrong


@pytest.mark.parametrize(
    ("place", "layer"),
    [("blocks.7.fc.weight", "blocks.7.fc (Linear)"), ("gru.weight_hh_l0", "gru (GRU)")],
)
@pytest.mark.parametrize("change", [copy.copy, decompose], ids=["code", "graph"])
def test_one_fault_in_160_parameters_is_a_screen(
    place: str, layer: str, change: Callable[[nn.Module], nn.Module]
) -> None:
    model = Deep()
    assert len(list(model.parameters())) == 160
    report = check_equivalence(model, change(with_fault(model, place)), torch.randn(4, 5, 3), seeds=2)
    assert len(report.failures) > 250
    lines = str(report).splitlines()
    assert len(lines) <= 25
    assert lines[1:3] == [
        f"the first layer that differs is {layer}",
        f"parameters with other numbers: {place}",
    ]
    # All of it is in the data.
    assert sum(not each["equal"] for each in report.to_dict()["comparisons"]) == len(report.failures)


class Inner(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.fc, self.factor = nn.Linear(3, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.fc(x)


def test_code_that_differs_is_named_with_its_line() -> None:
    one, other = (nn.Sequential(nn.Tanh(), Inner(factor)) for factor in (1.0, 2.0))
    other.load_state_dict(one.state_dict())
    report = check_equivalence(one, other, torch.randn(4, 3))
    line = Inner.forward.__code__.co_firstlineno
    assert report.first_layer == f"the first layer that differs is 1 (Inner) (test_screen.py:{line})"
    assert report.other_weights == ()


def test_what_a_model_does_with_equal_layers_is_told_from_them() -> None:
    one, other = Inner(1.0), Inner(2.0)
    other.load_state_dict(one.state_dict())
    report = check_equivalence(one, other, torch.randn(4, 3))
    assert report.first_layer.startswith("no layer that both run differs, but what the model itself (Inner)")


class Detaches(nn.Module):
    def __init__(self, detaches: bool) -> None:
        super().__init__()
        self.first, self.second, self.detaches = nn.Linear(3, 3), nn.Linear(3, 3), detaches

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y.detach() if self.detaches else y)


def test_where_gradients_begin_to_differ_is_named() -> None:
    one, other = Detaches(False), Detaches(True)
    other.load_state_dict(one.state_dict())
    report = check_equivalence(one, other, torch.randn(4, 3))
    assert report.first_layer == (
        "all layers give the same; backwards, gradients begin to differ at first (Linear)"
    )


def test_what_the_rewritten_model_raises_is_placed() -> None:
    class Raises(Inner):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    report = check_equivalence(nn.Sequential(Inner(1.0)), nn.Sequential(Raises(1.0)), torch.randn(4, 3))
    line = Raises.forward.__code__.co_firstlineno + 1
    (failure, _) = report.failures
    assert failure.problem == (
        f"the original runs, the rewritten model raises ValueError: no, in 0 (Raises) (test_screen.py:{line})"
    )


def test_json_says_with_what_it_was_made() -> None:
    model = nn.LSTM(3, 4, batch_first=True)
    data = json.loads(check_equivalence(model, decompose(model), torch.randn(4, 5, 3)).to_json())
    assert data["versions"].keys() == {"python", "torch", "rewriter"}
    assert data["versions"]["torch"] == torch.__version__
    assert data["seeds"] == 3
    assert data["inputs"] == {
        "0": "input: Tensor float32 (4, 5, 3) on cpu",
        "1": "input: Tensor float32 (5, 6, 3) on cpu",
        "2": "input: Tensor float32 (6, 7, 3) on cpu",
    }
    assert data["weights"]["original"] == hash_of_weights(model)
    assert data["weights"]["original"].startswith("sha256:")
    assert data["weights"]["rewritten"].startswith("sha256:")


def test_the_hash_is_one_of_names_and_numbers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = hash_of_weights(model)
    assert hash_of_weights(copy.deepcopy(model)) == before
    assert hash_of_weights(nn.Sequential(*model, nn.Tanh())) == before
    assert hash_of_weights(nn.Sequential(nn.Identity(), *model)) != before
    with torch.no_grad():
        model.get_buffer("1.running_mean")[0] = 1
    assert hash_of_weights(model) != before


def test_one_number_of_a_larger_tensor_has_a_hash() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(torch.ones(2, 3)[1:, 1:2])
    assert model.weight.stride() == (3, 1)
    model.weight.data = model.weight.data.t()
    expected = nn.Linear(1, 1, bias=False)
    expected.weight.data = torch.ones(1, 1)
    assert hash_of_weights(model) == hash_of_weights(expected)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_reports_print_where_there_are_few_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Größe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.größe_δ, self.gru = nn.Linear(3, 3), nn.GRU(3, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.gru(self.größe_δ(x))[0]
            return y.cummax(1)[0] if y.sum() > 1e9 else torch.erfinv(y.tanh() / 2).sort(-1)[0][:, -1]

    model, x = Größe(), torch.randn(2, 4, 3)
    other = Größe()
    results = [
        decompose(model).report,
        decompose(model, x).report,
        check_equivalence(model, other, x),
        rewriter.diagnose(model, x, x.flip(0)),
    ]
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        for each in results:
            print(each)
    out.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert r"gr\xf6\xdfe_\u03b4" in text or "größe_" in text
    assert "-----" in text
