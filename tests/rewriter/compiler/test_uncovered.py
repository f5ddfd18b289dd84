"""Everything on the way from input to output is linear, or has a rule, or is reported by name and line."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewriter
from passes.lowering.coverage import why_no_rule_for_module
from passes.operations.operation import CUTS, FIXED, NO_RULE, PRODUCT, RANDOM, ROWS
from rewriter import decompose
from rewriter.compiler.report import UncoveredReport
from rewriter.compiler.uncovered import WITHOUT_GRADIENTS, uncovered_calls
from tests.support.models import gallery


class Computes(nn.Module):
    """A layer, and a function of the user's between it and the output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


class ComputesInCode(Computes):
    """The same, where torch.fx cannot follow because of the second argument."""

    def forward(self, x: Tensor, unused: None = None) -> Any:
        return self.function(self.layer(x)) if len(x) else x


def example(kind: type[Computes], x: Tensor) -> tuple[Any, ...]:
    return (x, None) if kind is ComputesInCode else (x,)


WEIGHT = torch.randn(4, 4)
INDEX = torch.tensor([0, 2])
MASK = torch.tensor([True, False, True, True])

# What is not linear, by the reason that is given; torch.renorm stands for what nobody writes a rule for.
NOT_LINEAR: dict[str, list[Callable[[Tensor], Any]]] = {
    NO_RULE: [
        lambda x: torch.renorm(x, 2, 0, 0.1),
        lambda x: x.renorm(2, 0, 0.1),
        lambda x: x.clone().renorm_(2, 0, 0.1),
    ],
    CUTS: [lambda x: x.detach() + x, lambda x: x.data + x],
    RANDOM: [lambda x: F.dropout(x, 0.5), lambda x: x + torch.randn_like(x)],
    FIXED: [
        lambda x: torch.gather(x, 1, x.argsort(1)),
        lambda x: torch.index_select(x, 1, x.sum(0).argmax().reshape(1)),
        lambda x: x / (x > 0).sum(1, keepdim=True),
    ],
}
# What is linear, and needs no report, although it is not a module.
LINEAR: list[Callable[[Tensor], Any]] = [
    lambda x: x @ WEIGHT + F.linear(x, WEIGHT) * 2 - x / 3,
    lambda x: torch.cat([x, x.flip(1)], 1).view(-1, 2, 4).transpose(1, 2).mean(2),
    lambda x: torch.einsum("bi,ij->bj", x, WEIGHT).cumsum(1)[:, 1:],
    lambda x: x.masked_fill(MASK, 0.0) + torch.where(MASK, x, -x),
    lambda x: x.index_select(1, INDEX) + x[:, INDEX],
    lambda x: F.pad(F.interpolate(F.avg_pool1d(x[:, None], 2), scale_factor=2.0), (1, 1)),
    lambda x: torch.fft.rfft(x).real + x.chunk(2, 1)[0].sum(1, keepdim=True),
    lambda x: F.dropout(x, 0.5, training=False),
    lambda x: (x + x.new_zeros(len(WEIGHT))).unbind(1)[0],
]  # fmt: skip


def line_of(function: Any) -> str:
    return f"test_uncovered.py:{inspect.getsourcelines(function)[1]}"


@pytest.mark.parametrize("kind", [Computes, ComputesInCode], ids=["graph", "code"])
@pytest.mark.parametrize(
    ("reason", "function"), [(reason, each) for reason, those in NOT_LINEAR.items() for each in those]
)
def test_what_is_not_linear_is_reported(kind: type[Computes], reason: str, function: Any) -> None:
    report = decompose(kind(function), example(kind, torch.rand(3, 3) / 9)).report
    assert bool(report.islands) == (kind is ComputesInCode)
    assert reason in [each.reason for each in report.uncovered]
    assert {each.source for each in report.uncovered} == {line_of(function)}


@pytest.mark.parametrize("kind", [Computes, ComputesInCode], ids=["graph", "code"])
@pytest.mark.parametrize("function", LINEAR)
def test_what_is_linear_is_not_reported(kind: type[Computes], function: Any) -> None:
    # The oracle: the double of the difference is the difference of the double.
    x, d = torch.randn(2, 3, 3, dtype=torch.float64)
    model = kind(function).double()
    globals_in_double = {"WEIGHT": WEIGHT.double()}
    function.__globals__.update(globals_in_double)
    try:
        a, b, c = (model(x + k * d * 1e-3) for k in range(3))
        torch.testing.assert_close(c - b, b - a, rtol=0, atol=1e-12)
        assert decompose(model, example(kind, x)).report.uncovered == ()
    finally:
        function.__globals__.update({"WEIGHT": globals_in_double["WEIGHT"].float()})


def test_what_is_lowered_while_code_runs_is_not_reported() -> None:
    for function in (
        lambda x: x * x,
        lambda x: x @ x.T,
        lambda x: torch.einsum("bi,bi->b", x, x),
        lambda x: F.linear(x, x),
        lambda x: 1 / x.sum(1),
        lambda x: F.relu(2 * x, inplace=True).sigmoid_(),
    ):
        report = decompose(ComputesInCode(function), (torch.rand(3, 3), None)).report
        assert report.islands
        assert report.uncovered == ()


def test_masks_that_depend_on_the_input_in_code() -> None:
    for function in (lambda x: x * (x > 0), lambda x: x.masked_fill(x > 0, 0.0)):
        found = decompose(ComputesInCode(function), (torch.rand(3, 3), None)).report.uncovered
        assert {each.reason for each in found} == {FIXED}


def test_what_does_not_reach_the_output_is_not_reported() -> None:
    for kind in (Computes, ComputesInCode):
        model = kind(lambda x: (x.renorm(2, 0, 0.1) > 0, x.renorm(2, 0, 0.1).shape, x + 1)[2])
        assert decompose(model, example(kind, torch.rand(3, 3))).report.uncovered == ()


def test_a_decision_on_a_value_is_reported() -> None:
    report: Any = decompose(gallery.ValueControlFlow(), torch.randn(4, 5, 3)).report
    (found,) = report.uncovered
    assert found.operation == "bool"
    assert found.reason.startswith(FIXED)
    source, first = inspect.getsourcelines(gallery.ValueControlFlow.forward)
    offset = next(k for k, line in enumerate(source) if "if out.mean()" in line)
    assert found.source == f"gallery.py:{first + offset}"


class Loud(nn.ReLU):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).renorm(2, 0, 0.1)


def test_subclasses_and_hooked_modules_are_reported() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Loud(), nn.Tanh(), nn.Linear(4, 2))
    model[2].register_forward_hook(lambda *_: None)
    found = {each.name: each for each in decompose(model).report.uncovered}
    assert found["1"].operation == "Loud"
    assert "a subclass of ReLU" in found["1"].reason
    assert found["2"].operation == "Tanh"
    assert "hooks" in found["2"].reason
    assert len(found) == 2


def test_batch_statistics_are_reported() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4))
    report: Any = decompose(model).report
    (found,) = report.uncovered
    assert (found.name, found.reason) == ("1", ROWS)


@pytest.mark.parametrize("cls", [nn.Linear, nn.BatchNorm1d, nn.AvgPool1d, nn.Dropout])
def test_linear_modules_are_linear(cls: type[nn.Module]) -> None:
    size = {nn.Linear: (4, 4), nn.AvgPool1d: (2,), nn.Dropout: (0.5,)}.get(cls, (4,))
    module = cls(*size).double().eval()
    assert why_no_rule_for_module(module) is None
    a, b, c = (module(torch.full((2, 4), k, dtype=torch.float64)) for k in (1.0, 2.0, 3.0))
    torch.testing.assert_close(c - b, b - a, rtol=0, atol=1e-12)


def test_what_runs_inside_rewritten_layers_is_covered() -> None:
    for model in (gallery.ReadsLength(), gallery.Packing("GRU", bidirectional=True)):
        found = decompose(model, torch.randn(4, 5, 3)).report.uncovered
        assert not [each for each in found if "rnn" in each.name or "cell" in each.name]


def test_without_example_inputs_islands_are_named() -> None:
    report: Any = decompose(nn.Sequential(nn.Linear(3, 3), gallery.ValueControlFlow())).report
    assert list(report.islands) == ["1"]
    assert report.uncovered == ()


class OnlyInside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.renorm(2, 0, 0.1) if not self.training else x


def test_an_island_in_a_graph() -> None:
    model = nn.Sequential(nn.Linear(3, 3), OnlyInside(), nn.Sigmoid())
    report: Any = decompose(model, torch.randn(2, 3)).report
    (found,) = report.uncovered
    assert (found.name, found.operation, found.reason) == ("1", "renorm", NO_RULE)


class InPlace(nn.Module):
    """Writes what has no rule into a view of what is returned."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros(len(x), 4)
        kept[:, 1:] = x.renorm(2, 0, 0.1)
        kept.narrow(1, 0, 1).add_(x[:, :1].renorm(1, 0, 0.1))
        return kept


def test_writing_in_place_is_followed() -> None:
    found = uncovered_calls(InPlace(), [""], (torch.rand(2, 3),), {})
    assert [each.operation for each in found] == ["renorm", "renorm"]


class InputIsADict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": batch["x"].renorm(2, 0, 0.1) if len(batch) else batch["x"]}


def test_inputs_and_outputs_in_containers() -> None:
    report = decompose(InputIsADict(), ({"x": torch.rand(2, 2)},)).report
    assert [each.operation for each in report.uncovered] == ["renorm"]


def test_the_run_leaves_no_trace() -> None:
    model = ComputesInCode(lambda x: F.dropout(x.renorm(2, 0, 0.1), 0.5, training=True))
    before, x = model.layer.weight.clone(), torch.rand(3, 3)
    state = torch.get_rng_state()
    report: Any = decompose(model, (x, None)).report
    assert len(report.uncovered) == 2
    assert torch.equal(model.layer.weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.layer.__dict__) == list(nn.Linear(3, 4).__dict__)


def test_report_shows_and_exports_them() -> None:
    report: Any = decompose(Computes(lambda x: torch.renorm(x, 2, 0, 0.1))).report
    (found,) = report.uncovered
    assert isinstance(found, UncoveredReport)
    lines = str(report).splitlines()
    row = next(line for line in lines if "renorm" in line)
    assert found.source in row
    assert NO_RULE in row
    assert json.loads(json.dumps(report.to_dict()))["uncovered"][0]["source"] == found.source
    assert not rewriter.decompose(nn.Linear(2, 2)).report.uncovered


class Steps(nn.Module):
    """Numbers that are made of masks or indices alone."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.code, self.linear, self.embedding = code, nn.Linear(3, 3), nn.Embedding(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


@pytest.mark.parametrize(
    "code",
    [
        lambda m, x: (x > 0).to(x.dtype),
        lambda m, x: m.linear((x > 0).float()).tanh(),
        lambda m, x: m.embedding(x.argmax(1)),
        lambda m, x: m.linear.weight[x.argmax(1)],
    ],
)
def test_numbers_made_of_masks_or_indices_alone_are_reported(code: Any) -> None:
    model = decompose(Steps(code))
    assert not model.report.islands
    assert [each.reason for each in model.report.uncovered] == [FIXED]


def test_masks_and_indices_beside_the_output_are_not_reported() -> None:
    model = Computes(lambda x: (x + 1, x.argmax(1), (x > 0) & (x < 1)))
    assert decompose(model).report.uncovered == ()


def test_what_a_transform_computes_is_not_lowered() -> None:
    def found(function: Callable[[Tensor], Tensor]) -> list[tuple[str, str]]:
        model = ComputesInCode(torch.func.vmap(function))
        report = decompose(model, (torch.rand(3, 3), None)).report
        assert report.islands
        return [(each.operation, each.reason) for each in report.uncovered]

    where = "in a transform of torch.func"
    assert found(lambda row: row.tanh() * row) == [
        ("tanh", f"{NO_RULE}, {where}"),
        ("mul", f"{PRODUCT}, {where}"),
    ]
    assert found(lambda row: (row * 2 + 1).flip(0)) == []


WRITES: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.relu_(input=x * 2),
    lambda x: F.hardtanh_(min_val=-0.5, input=x * 2),
    lambda x: torch.ops.aten.tanh_.default(self=x * 2),
    lambda x: torch.tanh(x, out=torch.empty(0)),
    lambda x: torch.mul(x, 2, out=torch.empty(0)),
    lambda x: torch.max(x, 1, out=(torch.empty(0), torch.empty(0, dtype=torch.long)))[0],
]


@pytest.mark.parametrize("function", WRITES)
def test_wherever_a_call_writes(function: Callable[[Tensor], Tensor]) -> None:
    def found(code: Callable[[Tensor], Tensor]) -> list[str]:
        return [each.operation for each in uncovered_calls(Computes(code), [""], (torch.rand(3, 3),), {})]

    assert found(function) == []
    assert found(lambda x: function(x.renorm(2, 0, 0.1))) == ["renorm"]


def test_what_is_written_by_name_is_followed() -> None:
    def code(x: Tensor) -> Tensor:
        kept = torch.zeros(3, 4)
        torch.renorm(x, 2, 0, 0.1, out=kept)
        return kept

    (found,) = uncovered_calls(Computes(code), [""], (torch.rand(3, 3),), {})
    assert found.operation == "renorm"


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grads[0]


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return torch.tanh(x)


def test_functions_and_what_has_no_gradient_are_reported() -> None:
    def found(code: Callable[[Tensor], Tensor]) -> list[tuple[str, str]]:
        listed = uncovered_calls(Computes(code), [""], (torch.rand(3, 3),), {})
        assert all(each.source.startswith("test_uncovered.py:") for each in listed)
        return [(each.operation, each.reason) for each in listed]

    function = f"{NO_RULE}: an autograd Function of the model's own, which may compute anything"
    assert found(lambda x: torch.tanh(Cubed.apply(x))) == [("Cubed", function)]
    assert found(lambda x: (Cubed.apply(x), x + 1)[1]) == []
    assert found(lambda x: x + without_gradients(x)) == [("tanh", WITHOUT_GRADIENTS)]
    assert found(lambda x: (without_gradients(x), x + 1)[1]) == []


@pytest.mark.parametrize(
    ("read", "operation"),
    [
        (lambda x: float(x.detach().sum()), "float"),
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.detach().numpy().sum(), "numpy"),
        (lambda x: int(x.detach().sum()), "int"),
    ],
)
def test_numbers_that_python_reads_are_reported(read: Callable[[Tensor], Any], operation: str) -> None:
    listed = uncovered_calls(Computes(lambda x: x * read(x)), [""], (torch.rand(3, 3),), {})
    assert (operation, CUTS) in [(each.operation, each.reason) for each in listed]
