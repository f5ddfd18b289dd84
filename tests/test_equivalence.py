"""check_equivalence: passes what is equal, catches planted faults, names where, changes nothing."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
from collections import deque, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from passes.recurrent.recurrence import Recurrence
from rewriter import EquivalenceReport, RewriteError, assert_equivalent, check_equivalence, decompose
from rewriter.equivalence.probe import redraw
from rewriter.equivalence.report import EquivalenceError

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Wraps(nn.Module):
    """Runs a recurrent layer, the same parameters as any other Wraps of it, and changes the result."""

    def __init__(self, rnn: nn.Module, change: Any = None) -> None:
        super().__init__()
        self.rnn = rnn
        self.change = change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.rnn(*args, **kwargs)
        return self.change(result) if self.change else result


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def failing(report: EquivalenceReport) -> set[tuple[str, str]]:
    return {(each.kind, each.place) for each in report.failures}


# What is equal passes.

SEQUENCES = {
    "lstm": (nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)),
    "lstm, bidirectional, batch first": (
        nn.LSTM(3, 4, bidirectional=True, batch_first=True),
        torch.randn(2, 5, 3),
    ),
    "lstm, projected, two directions": (nn.LSTM(3, 4, proj_size=2, bidirectional=True), torch.randn(5, 2, 3)),
    "lstm, dropout in training": (nn.LSTM(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)),
    "lstm, packed": (nn.LSTM(3, 4, bidirectional=True), pack_sequence([torch.randn(n, 3) for n in (5, 3)])),
    "lstm, packed unsorted": (
        nn.LSTM(3, 4),
        pack_sequence([torch.randn(n, 3) for n in (2, 4, 3)], enforce_sorted=False),
    ),
    "lstm, state": (
        nn.LSTM(3, 4),
        {"input": torch.randn(5, 2, 3), "hx": (torch.zeros(1, 2, 4), torch.ones(1, 2, 4))},
    ),
    "gru, unbatched": (nn.GRU(3, 4, 2), torch.randn(5, 3)),
    "gru, no bias": (nn.GRU(3, 4, bias=False, bidirectional=True), torch.randn(5, 2, 3)),
    "rnn tanh": (nn.RNN(3, 4), (torch.randn(5, 2, 3), None)),
    "rnn relu": (nn.RNN(3, 4, nonlinearity="relu"), torch.randn(5, 2, 3)),
    "lstm cell": (nn.LSTMCell(3, 4), (torch.randn(2, 3), (torch.randn(2, 4), torch.randn(2, 4)))),
    "gru cell": (nn.GRUCell(3, 4), torch.randn(2, 3)),
    "rnn cell": (nn.RNNCell(3, 4), torch.randn(2, 3)),
}


@pytest.mark.parametrize("gates", ["fused", "split"])
@pytest.mark.parametrize("flat", [False, True], ids=["rolled", "flat"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_decomposed_layers_are_equal(name, flat, gates):
    model, inputs = SEQUENCES[name]
    rewritten = decompose(model, inputs if flat else None, gates=gates)
    report = check_equivalence(model, rewritten, inputs, seeds=1 if flat else 2)
    assert report.equal, str(report)
    compared = {each.place for each in report.comparisons if each.kind == "parameter gradient"}
    assert compared == {parameter for parameter, _ in model.named_parameters()}


class Classifier(nn.Module):
    """Cannot be traced: it branches on lengths, and packs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3, padding_idx=0)
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> dict[str, Any]:
        x: Any = self.embedding(tokens)
        if lengths is not None and int(lengths.min()) < tokens.shape[1]:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(x)
        logits = self.head(torch.cat((h[-2], h[-1]), -1))
        return {"logits": logits, "label": logits.argmax(-1), "lengths": lengths}


@pytest.mark.parametrize("gates", ["fused", "split"])
def test_an_untraceable_parent_with_integer_inputs_is_equal(gates):
    model = Classifier()
    tokens = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6], [1, 1, 1, 0]])
    inputs = {"tokens": tokens, "lengths": torch.tensor([2, 4, 3])}
    report = check_equivalence(model, decompose(model, gates=gates), inputs)
    assert report.equal, str(report)
    outputs = {each.place for each in report.comparisons if each.kind == "output"}
    assert outputs == {"output['logits']", "output['label']", "output['lengths']"}


def test_dropout_around_and_inside_a_layer_is_compared_in_training_mode():
    class Regular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Dropout(0.3), nn.Dropout(0.3)
            self.lstm = nn.LSTM(3, 4, 3, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.lstm(self.before(x))[0])

    model = Regular()
    assert_equivalent(model, decompose(model), torch.randn(2, 5, 3))


def test_a_shared_split_parameter_gets_the_sum_of_its_gradients():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(4, 4), nn.GRU(4, 4)
            self.second.weight_hh_l0 = self.first.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[0])[0]

    model = Tied()
    assert_equivalent(model, decompose(model, gates="split"), torch.randn(3, 2, 4))


# Planted faults are caught, and named.


def swap_gates(rnn: nn.LSTM) -> nn.LSTM:
    """Take the rows of i for those of f, in the input weights of layer 1."""
    wrong = copy.deepcopy(rnn)
    with torch.no_grad():
        weight = wrong.weight_ih_l1
        weight.copy_(torch.cat((weight[4:8], weight[:4], weight[8:])))
    return wrong


def drop_bias(rnn: nn.LSTM) -> nn.LSTM:
    wrong = copy.deepcopy(rnn)
    with torch.no_grad():
        wrong.bias_hh_l0.zero_()
    return wrong


@pytest.mark.parametrize("fault", [swap_gates, drop_bias])
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_wrong_weight_is_caught(fault, decomposed):
    model = nn.LSTM(3, 4, 2)
    wrong = fault(model)
    report = check_equivalence(model, decompose(wrong) if decomposed else wrong, torch.randn(5, 2, 3))
    assert {("output", "output[0]"), ("output", "output[1][0]"), ("output", "output[1][1]")} < failing(report)
    assert not report.equal_in("float32")
    assert not report.equal_in("float64")


def test_a_reverse_direction_that_is_not_reversed_is_caught():
    model = nn.GRU(3, 4, bidirectional=True)
    wrong = decompose(model)
    (reverse,) = [m for m in wrong.modules() if isinstance(m, Recurrence) and m.reverse]
    reverse.reverse = False
    report = check_equivalence(model, wrong, torch.randn(5, 2, 3))
    assert {("output", "output[0]"), ("output", "output[1]")} <= failing(report)
    worst = next(each for each in report.failures if each.place == "output[0]")
    assert worst.index[-1] >= 4, "only the features of the reverse direction differ"


def test_a_step_too_many_is_caught_although_all_shapes_agree():
    lstm = nn.LSTM(3, 4)
    off = Wraps(lstm, lambda result: (result[0].roll(1, 0), result[1]))
    report = check_equivalence(Wraps(lstm), off, torch.randn(5, 2, 3))
    assert ("output", "output[0]") in failing(report)
    assert not {("output", "output[1][0]"), ("output", "output[1][1]")} & failing(report)


@pytest.mark.parametrize("state", [0, 1])
def test_a_wrong_final_state_alone_is_caught(state):
    def spoil(result: Any) -> Any:
        out, states = result
        return out, tuple(s + 1e-6 if k == state else s for k, s in enumerate(states))

    lstm = nn.LSTM(3, 4)
    report = check_equivalence(Wraps(lstm), Wraps(lstm, spoil), torch.randn(5, 2, 3))
    assert failing(report) == {("output", f"output[1][{state}]")}
    assert report.equal_in("float32")
    assert not report.equal_in("float64")


def test_a_gradient_lost_at_one_state_is_caught_although_all_outputs_agree():
    lstm = nn.LSTM(3, 4)
    lost = Wraps(lstm, lambda result: (result[0], (result[1][0], result[1][1].detach())))
    report = check_equivalence(Wraps(lstm), lost, torch.randn(5, 2, 3))
    assert {kind for kind, _ in failing(report)} == {"input gradient", "parameter gradient"}
    assert ("input gradient", "input") in failing(report)


def test_a_gradient_lost_at_one_parameter_is_caught():
    class Forgets(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Any:
            return functional_call(self.rnn, {"bias_ih_l0": self.rnn.bias_ih_l0.detach()}, (x,))

    rnn = nn.RNN(3, 4)
    report = check_equivalence(Wraps(rnn), Forgets(rnn), torch.randn(5, 2, 3))
    assert failing(report) == {("parameter gradient", "rnn.bias_ih_l0")}


def test_a_wrong_gradient_is_shown_with_both_values():
    right = Function(lambda x: 3 * x)
    wrong = Function(lambda x: 5 * x - (2 * x).detach())
    (failure,) = check_equivalence(right, wrong, torch.ones(1), seeds=1).failures[:1]
    expected, got = (
        float(failure.problem.split(f"{word} ")[1].split(",")[0].split(";")[0])
        for word in ("expected", "got")
    )
    assert got / expected == pytest.approx(5 / 3)
    assert failure.absolute == pytest.approx(abs(got - expected))


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (lambda r: list(r), "output", "expected tuple of 2, got list of 2"),
        (lambda r: (r[0],), "output", "expected tuple of 2, got tuple of 1"),
        (lambda r: r[0], "output", "expected tuple of 2, got Tensor float32 (5, 2, 4) on cpu"),
        (lambda r: (r[0], None), "output[1]", "expected Tensor float32 (1, 2, 4) on cpu, got None"),
        (lambda r: (r[0], r[1][0]), "output[1]", "got Tensor float32 (2, 4) on cpu"),
        (lambda r: (r[0].half(), r[1]), "output[0]", "got Tensor float16 (5, 2, 4) on cpu"),
    ],
)
def test_another_structure_is_caught(change, place, problem):
    gru = nn.GRU(3, 4)
    report = check_equivalence(Wraps(gru), Wraps(gru, change), torch.randn(5, 2, 3))
    here = [each for each in report.failures if (each.dtype, each.kind) == ("float32", "structure")]
    structures = {each.place: each.problem for each in here}
    assert problem in structures[place]


def test_a_cast_is_caught_in_the_other_dtype():
    gru = nn.GRU(3, 4)
    report = check_equivalence(Wraps(gru), Wraps(gru, lambda r: (r[0].float(), r[1])), torch.randn(5, 2, 3))
    assert report.equal_in("float32")
    found = [each.problem for each in report.failures if each.dtype == "float64" and each.kind == "structure"]
    assert found == ["expected Tensor float64 (5, 2, 4) on cpu, got Tensor float32 (5, 2, 4) on cpu"]


def test_a_parameter_of_another_dtype_is_caught_although_both_models_are_converted():
    model = nn.Linear(2, 2)
    report = check_equivalence(model, copy.deepcopy(model).double(), torch.randn(3, 2))
    assert {place for _, place in failing(report)} == {"weight", "bias"}
    assert "expected dtype torch.float32, got torch.float64" in report.failures[0].problem


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_single_changed_weight_is_caught(data):
    kind, width = data.draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN])), data.draw(st.integers(1, 3))
    model = kind(2, width, data.draw(st.integers(1, 2)), bidirectional=data.draw(st.booleans())).double()
    wrong = copy.deepcopy(model)
    parameter = data.draw(st.sampled_from(list(wrong.parameters())))
    with torch.no_grad():
        parameter.view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] += 1e-3
    tolerances = {torch.float64: 1e-10}
    inputs = torch.randn(4, 2, 2)
    assert not check_equivalence(model, wrong, inputs, seeds=1, tolerances=tolerances).equal
    assert check_equivalence(model, decompose(model), inputs, seeds=1, tolerances=tolerances).equal


# Numbers, by hand.


def test_differences_are_those_that_were_planted():
    planted = torch.tensor([[0.0, 0.0], [0.0, 0.25]])
    right, wrong = Function(lambda x: 8 * x / x), Function(lambda x: 8 * x / x + planted.to(x))
    report = check_equivalence(right, wrong, torch.full((2, 2), 3.0))
    for failure in report.failures:
        assert (failure.place, failure.index) == ("output", (1, 1))
        assert failure.absolute == pytest.approx(0.25)
        assert failure.relative == pytest.approx(0.25 / 8)
    assert {each.dtype for each in report.failures} == {"float32", "float64"}


def test_small_tensors_are_held_to_an_absolute_difference():
    right, wrong = Function(lambda x: 1e-3 * x), Function(lambda x: 1e-3 * x + 5e-6)
    report = check_equivalence(right, wrong, torch.ones(3), tolerances={torch.float32: 1e-5})
    assert report.equal
    assert not check_equivalence(right, wrong, torch.ones(3), tolerances={torch.float32: 4e-6}).equal


@pytest.mark.parametrize(
    ("original", "rewritten", "equal"),
    [
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, 1.0, False),
        (1.0, math.inf, False),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        (math.nan, math.nan, True),
    ],
)
def test_infinities_and_nan_must_agree(original, rewritten, equal):
    def constant(value: float) -> nn.Module:
        return Function(lambda x: torch.stack((x[0], torch.full_like(x[1], value))))

    report = check_equivalence(constant(original), constant(rewritten), torch.ones(2))
    assert report.equal is equal
    places = {(each.place, each.index) for each in report.failures if each.kind == "output"}
    assert places == (set() if equal else {("output", (1,))})


def test_nan_at_the_same_places_is_noted_and_hides_nothing():
    def model(factor: float) -> nn.Module:
        return Function(lambda x: (factor * x.where(x < 0.7, math.nan), 1 * x))

    inputs = torch.tensor([0.5, 0.75, 0.6])
    report = check_equivalence(model(2.0), model(2.0), inputs, seeds=1)
    assert report.equal, str(report)
    assert report.notes == ("output output[0]: NaN at the same 1 places in both",)
    report = check_equivalence(model(2.0), model(3.0), inputs, seeds=1)
    assert ("output", "output[0]") in failing(report)


def test_where_all_is_nan_nothing_is_equal():
    model = Function(lambda x: (x * math.nan, 1 * x))
    report = check_equivalence(model, model, torch.ones(2), seeds=1)
    assert ("output", "output[0]") in failing(report)
    assert report.failures[0].problem == "nothing finite to compare: NaN in both"


def test_nan_in_one_part_of_a_complex_number_does_not_hide_the_other():
    def model(imaginary: float) -> nn.Module:
        def forward(x: Tensor) -> Any:
            real = torch.stack((x[0], torch.full_like(x[0], math.nan)))
            return torch.complex(real.detach(), torch.full_like(real, imaginary).detach())

        return Function(forward)

    assert check_equivalence(model(1.0), model(1.0), torch.ones(1), seeds=1).equal
    report = check_equivalence(model(1.0), model(2.0), torch.ones(1), seeds=1)
    assert {each.index for each in report.failures} == {(1,)}


def test_outputs_that_are_tiny_are_noted():
    model = Function(lambda x: (1e-9 * x, 1 * x))
    (note,) = check_equivalence(model, model, torch.ones(2), seeds=1).notes
    assert note == "output output[0]: compared absolutely, for max |original| is 1.0e-09"


def test_nan_in_a_gradient_alone_is_caught():
    wrong = Function(lambda x: torch.where(x > 0, x, (x - x).sqrt() * 0 + x))
    report = check_equivalence(Function(lambda x: 1 * x), wrong, torch.tensor([1.0, 2.5]))
    assert failing(report) == {("input gradient", "input")}


def test_integer_outputs_must_be_the_same():
    right = Function(lambda x: (x, torch.tensor([3, 2**40])))
    wrong = Function(lambda x: (x, torch.tensor([3, 2**40 + 1])))
    assert failing(check_equivalence(right, wrong, torch.ones(1))) == {("output", "output[1]")}


# Structures.


class Named(NamedTuple):
    out: Tensor
    rest: Any


@dataclass
class Data:
    out: Tensor
    rest: Any


Plain = namedtuple("Plain", ["out", "rest"])


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y


class Callable(Slots):
    def __call__(self) -> Any:
        return self.y


class Attribute(list[Any]):
    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x)
        self.y = y


@pytest.mark.parametrize(
    ("structure", "place"),
    [
        (lambda x, y: y, "output"),
        (lambda x, y: (x, [y]), "output[1][0]"),
        (lambda x, y: {"a": x, 1: (y,)}, "output[1][0]"),
        (lambda x, y: {"a": {"b": y}}, "output['a']['b']"),
        (lambda x, y: Named(x, y), "output.rest"),
        (lambda x, y: Plain(x, {"y": y}), "output.rest['y']"),
        (lambda x, y: Data(x, (None, y)), "output.rest[1]"),
        (lambda x, y: SimpleNamespace(x=x, y=y), "output.y"),
        (lambda x, y: torch.distributions.Normal(x, y.exp()), "output.scale"),
        (lambda x, y: (x, y.sum().item()), "output[1]"),
        (lambda x, y: (x, y.detach().numpy()), "output[1]"),
        (lambda x, y: PackedSequence(y, torch.tensor([2])), "output.data"),
        (lambda x, y: torch.complex(x, y), "output"),
        (lambda x, y: (y > 0).long(), "output"),
        (lambda x, y: deque([x, y]), "output[1]"),
        (lambda x, y: {"a": x, "b": y}.values(), "output[1]"),
        (lambda x, y: Slots(x, y), "output.y"),
        (lambda x, y: Callable(x, y), "output.y"),
        (lambda x, y: Attribute([x], y), "output.y"),
    ],
)
def test_tensors_are_found_wherever_they_are(structure, place):
    right, wrong = Function(lambda x: structure(x, 0.5 - x)), Function(lambda x: structure(x, 0.7 - x))
    inputs = torch.tensor([0.6, 0.25])
    assert check_equivalence(right, right, inputs).equal
    assert ("output", place) in failing(check_equivalence(right, wrong, inputs))


@pytest.mark.parametrize(
    ("expected", "got", "problem"),
    [
        ("mean", "sum", "expected 'mean', got 'sum'"),
        (3, 4, "expected 3, got 4"),
        (True, 1, "expected True, got 1"),
        (None, 0, "expected None, got 0"),
        (range(3), range(4), "expected range(0, 3), got range(0, 4)"),
        (int, float, "expected type builtins.int, got type builtins.float"),
        ({"a": 1}, {"b": 1}, "expected dict with ['a'], got dict with ['b']"),
    ],
)
def test_other_parts_must_be_the_same(expected, got, problem):
    report = check_equivalence(
        Function(lambda x: (x, expected)), Function(lambda x: (x, got)), torch.ones(1), seeds=1
    )
    assert {(each.place, each.problem) for each in report.failures} == {("output[1]", problem)}


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (slice(0, 2), slice(0, 3)),
        (frozenset({"a"}), frozenset({"b"})),
        ({1, 2}, {1, 3}),
        ({1, 2}, {1, 2, 3}),
        (torch.Size([2, 3]), torch.Size([2, 4])),
    ],
)
def test_plain_containers_are_compared_by_value(expected, got):
    def model(value: Any) -> nn.Module:
        return Function(lambda x: (x, value))

    inputs = torch.ones(1)
    assert check_equivalence(model(expected), model(copy.deepcopy(expected)), inputs, seeds=1).equal
    assert not check_equivalence(model(expected), model(got), inputs, seeds=1).equal


@pytest.mark.parametrize(
    ("hide", "name"),
    [
        (lambda y: iter([y]), "list_iterator"),
        (lambda y: (each for each in [y]), "generator"),
        (lambda y: map(torch.neg, [y]), "map"),
        (lambda y: {y}, "set"),
        (lambda y: frozenset([y]), "frozenset"),
        (lambda y: {y.item()}, "set"),
        (lambda y: lambda: y, "function"),
        (lambda y: y.sum, "builtin_function_or_method"),
        (lambda y: partial(torch.add, y), "partial"),
        (lambda y: nn.ParameterList([y.detach()]), "ParameterList"),
        (lambda y: object(), "object"),
    ],
)
def test_what_cannot_be_looked_into_is_never_called_equal(hide, name):
    def model(sign: float) -> nn.Module:
        return Function(lambda x: (x, hide(sign * x)))

    report = check_equivalence(model(1.0), model(-1.0), torch.ones(1), seeds=1)
    (problem,) = {each.problem for each in report.failures}
    assert problem.startswith(f"cannot look into {name} at output[1]")


def test_an_object_that_is_there_twice_is_compared_twice():
    def twice(x: Tensor) -> Any:
        data = SimpleNamespace(x=x)
        return data, data

    wrong = Function(lambda x: (SimpleNamespace(x=x), SimpleNamespace(x=-x)))
    assert ("output", "output[1].x") in failing(check_equivalence(Function(twice), wrong, torch.ones(1)))


def test_a_model_of_which_no_output_was_compared_is_not_called_equal():
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return {"shape": super().forward(x).shape}

    for model, inputs in ((Silent(2, 2), torch.ones(1, 2)), (nn.Linear(2, 2), torch.ones(0, 2))):
        report = check_equivalence(model, copy.deepcopy(model), inputs, seeds=1)
        assert {each.problem for each in report.failures} == {"no tensor of the outputs could be compared"}


def test_an_output_that_refers_to_itself_ends():
    def circle(x: Tensor) -> SimpleNamespace:
        node = SimpleNamespace(x=x)
        node.me = node
        return node

    assert check_equivalence(Function(circle), Function(circle), torch.ones(1)).equal


def test_inputs_in_dataclasses_and_packed_sequences_get_gradients():
    gru = nn.GRU(3, 4)
    packed = pack_sequence([torch.randn(n, 3) for n in (4, 2)])
    model = Function(lambda batch, scale: gru(batch.out)[1] * batch.rest["w"] * scale)
    report = check_equivalence(model, model, (Data(packed, {"w": torch.rand(4)}), 2))
    gradients = {each.place for each in report.comparisons if each.kind == "input gradient"}
    assert gradients == {"input[0].out.data", "input[0].rest['w']"}


# Random inputs.


def test_random_inputs_stay_valid():
    example = {
        "x": torch.tensor([0.5, -1.5, 3.0, 0.25]),
        "state": torch.zeros(2, 3),
        "scale": torch.tensor([4.0]),
        "mask": torch.tensor([1.0, 0.0, 1.0]),
        "bias": torch.tensor([0.5, -math.inf, 0.1]),
        "lengths": torch.tensor([3, 2]),
        "name": "left as it is",
    }
    first, again, other = redraw(example, 1), redraw(example, 1), redraw(example, 2)
    for key in ("x", "state", "scale", "bias"):
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], example[key])
        assert not torch.equal(first[key], other[key])
    assert first["x"].min() >= -1.5
    assert first["x"].max() <= 3
    assert 2 <= first["scale"].item() <= 6
    assert first["bias"][1] == -math.inf
    assert torch.equal(first["mask"], example["mask"])
    assert torch.equal(first["lengths"], example["lengths"])
    assert first["name"] == example["name"]


def test_a_fault_that_the_example_hides_is_found_by_another_seed():
    gru = nn.GRU(3, 4)
    forgets_state = Function(lambda x, h: gru(x))
    inputs = (torch.randn(5, 2, 3), torch.zeros(1, 2, 4))
    faults = check_equivalence(Function(gru), forgets_state, inputs).failures
    assert {each.seed for each in faults if each.kind == "output"} <= {1, 2}
    assert {each.place for each in faults if each.kind == "output"} == {"output[0]", "output[1]"}


def test_random_inputs_that_the_original_refuses_are_left_out_with_a_note():
    def picky(x: Tensor) -> Tensor:
        if not torch.equal(x, torch.ones_like(x)):
            raise ValueError("ones only")
        return 2 * x

    report = check_equivalence(Function(picky), Function(picky), torch.ones(2), seeds=2)
    assert report.equal
    assert report.seeds == 1
    assert "for 1 input(s)" in str(report)
    assert len(report.notes) == 2
    assert (
        "float32, seed 1 was left out: the original does not take random floats: ValueError: ones only"
        in str(report)
    )


def test_only_different_inputs_are_counted():
    model = nn.Embedding(5, 2)
    report = check_equivalence(model, model, torch.tensor([1, 4, 0]))
    assert report.equal
    assert report.seeds == 1
    assert str(report).startswith("Embedding and Embedding are equal in float32 and float64, for 1 input(s)")
    assert any(note.startswith("only integers: one input") for note in report.notes)
    assert check_equivalence(nn.ReLU(), nn.ReLU(), torch.randn(3), seeds=4).seeds == 4


# Parameters.


def test_a_parameter_without_counterpart_is_reported():
    with_bias, without = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        without.weight.copy_(with_bias.weight)
        with_bias.bias.zero_()
    report = check_equivalence(with_bias, without, torch.randn(3, 2))
    assert failing(report) == {("parameter gradient", "bias")}
    assert "bias: no counterpart in the rewritten model" in str(report)
    assert failing(check_equivalence(without, with_bias, torch.randn(3, 2))) == {
        ("parameter gradient", "bias (rewritten)")
    }


def test_unused_parameters_need_no_counterpart():
    model = nn.Sequential(nn.Linear(2, 2))
    model.spare = nn.Linear(7, 7)
    unused = Function(model[0])
    assert check_equivalence(Wraps(model[0]), unused, torch.randn(3, 2)).equal
    wrapped = Wraps(model[0])
    wrapped.spare = nn.Linear(7, 7)
    assert check_equivalence(wrapped, Wraps(model[0]), torch.randn(3, 2)).equal
    assert check_equivalence(Wraps(model[0]), wrapped, torch.randn(3, 2)).equal


def test_a_parameter_of_another_shape_is_reported():
    class Row(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(shape))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.w

    report = check_equivalence(Row(1, 2), Row(2), torch.randn(3, 2))
    assert {each.problem for each in report.failures} == {"expected shape (1, 2), got (2,) for w"}


def test_a_frozen_parameter_that_became_trainable_is_reported():
    model = nn.Linear(2, 2)
    thawed = copy.deepcopy(model)
    model.weight.requires_grad_(False)
    assert failing(check_equivalence(model, thawed, torch.randn(3, 2))) == {("parameter gradient", "weight")}


# Dtypes.


class Fixed(nn.Module):
    """Runs in float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float())


def test_a_dtype_in_which_the_original_does_not_run_is_not_claimed():
    model = Fixed()
    report = check_equivalence(model, copy.deepcopy(model), torch.randn(3, 2))
    assert list(report.not_compared) == ["float64"]
    assert not report.failures
    assert not report.equal
    assert not report.equal_in("float64")
    assert str(report).startswith("Fixed and Fixed are equal in float32, for 3 input(s)")
    assert "not compared in float64: the original does not run: RuntimeError" in str(report)
    with pytest.raises(RewriteError, match="pass tolerances"):
        assert_equivalent(model, model, torch.randn(3, 2))
    assert_equivalent(model, model, torch.randn(3, 2), tolerances={torch.float32: 1e-5})


def test_a_rewritten_model_that_runs_in_fewer_dtypes_is_caught():
    model = Fixed()
    report = check_equivalence(Wraps(model.linear), model, torch.randn(3, 2))
    assert failing(report) == {("run", "rewritten")}
    assert report.equal_in("float32")
    assert "the original runs, the rewritten model raises RuntimeError" in str(report)


class Zeros(nn.Module):
    """Creates its state in the default dtype."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 3)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, torch.zeros(x.shape[0], 3, **self.given(x)))


def test_the_default_dtype_is_changed_only_for_an_original_that_needs_it():
    depends, follows = Zeros(lambda x: {}), Zeros(lambda x: {"dtype": x.dtype})
    depends.cell = follows.cell
    report = check_equivalence(depends, follows, torch.randn(4, 2))
    assert report.equal
    assert "float64 both models ran with torch.set_default_dtype(torch.float64)" in report.notes[0]
    assert not check_equivalence(follows, depends, torch.randn(4, 2)).equal_in("float64")
    assert torch.get_default_dtype() == torch.float32


# Nothing is changed.


def snapshot(*models: nn.Module) -> list[Any]:
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    found += [torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.enabled]
    for model in models:
        found += [(name, id(m), m.training, sorted(vars(m))) for name, m in model.named_modules()]
        found += [
            (id(p), p.tolist(), p.dtype, None if p.grad is None else p.grad.tolist())
            for p in model.parameters()
        ]
        found += [(id(b), b.tolist(), b.dtype) for b in model.buffers()]
    return found


class Draws(nn.Module):
    """Has all that a check could change: buffers, random draws of three kinds, state, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, dropout=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.broken = False
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        out, self.last = self.lstm(x * (random.random() + float(np.random.rand()) + torch.rand(())))
        if self.broken:
            raise ValueError("broken")
        return self.norm(out[-1])


@pytest.mark.parametrize("broken", ["neither", "rewritten", "original"])
def test_models_inputs_and_global_state_stay(broken):
    original, inputs = Draws(), torch.randn(5, 2, 3)
    original(inputs.clone()).sum().backward()
    rewritten = decompose(original)
    original.broken, rewritten.broken = broken == "original", broken == "rewritten"
    before, kept = snapshot(original, rewritten), inputs.clone()
    if broken == "original":
        with pytest.raises(RewriteError):
            check_equivalence(original, rewritten, inputs)
    else:
        report = check_equivalence(original, rewritten, inputs)
        assert report.equal is (broken == "neither"), str(report)
    assert snapshot(original, rewritten) == before
    assert torch.equal(inputs, kept)
    assert not inputs.requires_grad
    assert inputs.grad is None


def test_a_model_that_keeps_its_state_is_compared_from_the_same_state_each_time():
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)
            self.state: Any = None
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            out, self.state = self.lstm(x, self.state)
            self.calls += 1
            return out * self.calls

    model, inputs = Keeps(), torch.randn(5, 2, 3)
    model(inputs)
    rewritten = decompose(model)
    state, calls = model.state, model.calls.item()
    assert_equivalent(model, rewritten, inputs)
    assert model.state is state
    assert model.calls == calls


def test_it_works_where_gradients_are_off():
    model = nn.GRU(2, 3)
    wrong = Wraps(model, lambda result: (result[0].detach(), result[1]))
    with torch.no_grad():
        assert not check_equivalence(Wraps(model), wrong, torch.randn(3, 2)).equal
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert check_equivalence(model, decompose(model), torch.randn(3, 2)).equal


def test_modes_that_differ_are_noted():
    report = check_equivalence(nn.Linear(2, 2), nn.Linear(2, 2).eval(), torch.randn(3, 2))
    assert "note: the original is in training mode, the rewritten model in evaluation mode" in str(report)


def test_inner_modes_that_differ_are_noted():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    other = copy.deepcopy(model)
    other[1].eval()
    report = check_equivalence(model, other, torch.randn(3, 2), seeds=1)
    assert "1 is in training mode in the original, in evaluation mode in the rewritten" in report.notes
    for mode in (True, False):
        gru = nn.Sequential(nn.GRU(2, 3, 2)).train(mode)
        for rewritten in (decompose(gru), decompose(gru, torch.randn(3, 2))):
            assert not check_equivalence(gru, rewritten, torch.randn(3, 2), seeds=1).notes


def test_buffers_after_the_call_are_compared():
    right, wrong = nn.BatchNorm1d(2, momentum=0.1), nn.BatchNorm1d(2, momentum=0.9)
    report = check_equivalence(right, wrong, torch.randn(4, 2))
    places = {("buffer after the call", name) for name in ("running_mean", "running_var")}
    assert failing(report) == places
    assert check_equivalence(right, copy.deepcopy(right), torch.randn(4, 2)).equal
    assert check_equivalence(right.eval(), wrong.eval(), torch.randn(4, 2)).equal


def test_a_buffer_that_was_never_written_is_no_difference():
    model = nn.Linear(2, 2)
    model.register_buffer("unused", torch.full((2,), math.nan))
    assert check_equivalence(model, copy.deepcopy(model), torch.randn(3, 2), seeds=1).equal


def test_an_original_that_differs_from_itself_is_noted():
    calls = iter(range(1, 1000))
    model = Function(lambda x: x * next(calls))
    model.__deepcopy__ = lambda memo: model
    report = check_equivalence(model, Function(lambda x: x), torch.ones(2), seeds=1)
    assert "differs from itself when run twice from the same seed, at output" in report.notes[0]


class Compiled(nn.Module):
    """Computes something else than what it has under the name that torch.compile uses."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self._orig_mod(x)


def test_a_module_is_not_taken_for_compiled_by_the_name_of_an_attribute():
    wrong = Compiled()
    report = check_equivalence(Wraps(wrong._orig_mod), wrong, torch.randn(3, 2))
    assert ("output", "output") in failing(report)


def test_compiled_models_are_compared_without_compile_and_noted():
    model = nn.Linear(2, 2)
    report = check_equivalence(model, torch.compile(model, backend="eager"), torch.randn(3, 2), seeds=1)
    assert report.equal
    assert report.notes == ("the rewritten model was compared without torch.compile",)


# The report.


def test_the_report_is_json_that_any_reader_takes():
    wrong = Wraps(nn.Linear(2, 2), lambda y: y * math.nan)
    report = check_equivalence(nn.Linear(2, 2), wrong, torch.randn(3, 2))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(report.to_json(), parse_constant=refuse)
    assert data == json.loads(json.dumps(report.to_dict()))
    assert data["equal"] is False
    assert data["dtypes"] == ["float32", "float64"]
    (output,) = [e for e in data["comparisons"] if e["kind"] == "output" and e["dtype"] == "float32"]
    assert output["absolute"] is None
    assert output["problem"].endswith("the relative difference inf is above 1e-05")


def test_the_table_lists_states_and_sums_parameters_up():
    model = nn.LSTM(3, 4)
    text = str(check_equivalence(model, decompose(model), torch.randn(5, 2, 3)))
    lines = text.splitlines()
    assert lines[0] == "LSTM and LSTMStandIn are equal in float32 and float64, for 3 input(s)"
    assert lines[2].split()[:3] == ["dtype", "what", "where"]
    for place in ("output[0]", "output[1][0]", "output[1][1]"):
        assert sum(f" {place} at " in line for line in lines) == 2
    assert sum("parameter gradients, worst of 4" in line for line in lines) == 2


def test_assert_equivalent_raises_with_the_report_and_its_table():
    model, other = nn.GRU(3, 4), nn.GRU(3, 4)
    assert assert_equivalent(model, decompose(model), torch.randn(5, 3)) is None
    with pytest.raises(EquivalenceError) as caught:
        assert_equivalent(model, other, torch.randn(5, 3))
    assert isinstance(caught.value, RewriteError)
    assert isinstance(caught.value, AssertionError)
    assert str(caught.value) == str(caught.value.report)
    assert "GRU and GRU are NOT equal" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).report == caught.value.report


def test_a_long_list_of_failures_is_cut_in_the_message_and_nowhere_else():
    model = nn.GRU(3, 4, 3)
    report = check_equivalence(model, nn.GRU(3, 4, 3), torch.randn(5, 3))
    assert len(report.failures) > 20
    assert str(report).count("different: float") == 10
    assert f"different: {len(report.failures) - 10} more, all in the report's failures" in str(report)
    assert len([each for each in report.to_dict()["comparisons"] if not each["equal"]]) == len(
        report.failures
    )


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, nn.ReLU(), 1), {}, "original: expected a torch.nn.Module, got int"),
        ((nn.ReLU(), torch.relu, 1), {}, "rewritten: expected a torch.nn.Module, got builtin"),
        (
            (nn.ReLU(), nn.ReLU(), torch.ones(1)),
            {"seeds": 0},
            "seeds: expected a number of at least 1, got 0",
        ),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {}}, "tolerances: expected"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {torch.int64: 1.0}}, "tolerances: expected"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"tolerances": {torch.float32: math.nan}}, "tolerances:"),
        ((nn.ReLU(), nn.ReLU(), torch.ones(1)), {"gradient_factor": 0.5}, "gradient_factor: expected"),
        (
            (nn.GRU(3, 2), nn.GRU(3, 2), torch.ones(5, 4)),
            {},
            r"do not run through the original \(GRU\):\n  - float32",
        ),
        (
            (nn.GRU(3, 2), nn.GRU(3, 2), {"wrong": torch.ones(5, 3)}),
            {},
            "unexpected keyword argument 'wrong'",
        ),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(RewriteError, match=message):
        check_equivalence(*arguments, **options)
