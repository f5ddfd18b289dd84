"""The properties on a few drawn examples, always the same; ``make fuzz`` draws others, for long."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from torch import nn

from passes.errors import RewriteError
from passes.operations.catalogue import operation_of
from tests.fuzz import __main__ as command
from tests.fuzz import computing, explaining, forms, judging
from tests.fuzz.forms.form import Kinds
from tests.fuzz.judging import Judge
from tests.fuzz.programs import programs
from tests.fuzz.properties import PROPERTIES
from tests.fuzz.running import Found, Property, search


@pytest.mark.parametrize("each", PROPERTIES, ids=lambda each: each.name)
def test_holds(each: Property) -> None:
    tally = search(each, first_seed=0, examples=each.bounded)
    assert not tally.found, "\n".join(f"{found.violation}\n{found.example!r}" for found in tally.found)
    assert sum(tally.outcomes.values()) == each.bounded


def test_models_are_made_of_many_operations() -> None:
    called = {name for each in forms.ALL.forms for name in re.findall(r"\w+", each.text)}
    known = {operation.name for name in called if (operation := operation_of(name)) is not None}
    assert len(known) >= 250


class Planted:
    """Stands for ``decompose``, with a fault where a model has a hyperbolic tangent."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __call__(self, model: nn.Module, example_inputs: Any = None) -> nn.Module:
        inner = model[0] if isinstance(model, nn.Sequential) else model
        if "tanh" not in type(inner).forward.__code__.co_names:
            return model
        if self.fault == "crash":
            raise KeyError("tanh")
        if self.fault == "refused":
            raise RewriteError("no")
        if self.fault == "hangs":
            time.sleep(5)
        if self.fault == "touches":
            model.train()
        return nn.Tanhshrink()


FAULTS = {
    "crash": r"decompose\(model\): raises KeyError",
    "refused": "what is promised is refused",
    "hangs": r"decompose\(model\): takes more than",
    "touches": "changes the user's model",
    "another function": "returns another structure|computes another output",
}
# What is tested is what is made of a violation, not how rare ones are found.
FEW = Kinds("few", tuple(each for each in forms.EXACT.forms if "{a}.tanh()" in each.text))


def found_in(judge: Judge) -> Found:
    tally = search(Property("planted", programs(FEW), judge, 1), first_seed=0, examples=5)
    assert tally.found
    return tally.found[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_shrunk(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "decompose", Planted(fault))
    monkeypatch.setattr(judging, "SECONDS", 0.2)
    found = found_in(computing.computes_the_same)
    assert re.search(FAULTS[fault], str(found.violation))
    assert len(found.example.names) == 1
    # What is printed runs by itself.
    printed: dict[str, Any] = {"__name__": "printed"}
    exec(repr(found.example), printed)
    assert isinstance(printed["model"], nn.Module)


class Silent:
    """Stands for ``DeepExplainer``, and returns gradients times inputs."""

    def __init__(self, model: nn.Module, *_: object, output: Any = None, **__: object) -> None:
        self.model, self.output = model, output

    def shap_values(self, x: Any) -> Any:
        inputs = [each.clone().requires_grad_() for each in (x if isinstance(x, list) else [x])]
        y = self.model(*inputs)
        y = y if self.output is None else y[self.output]
        columns = [
            torch.autograd.grad(each.sum(), inputs, retain_graph=True, allow_unused=True) for each in y.T
        ]
        parts = [
            torch.stack([torch.zeros_like(a) if g is None else g * a for g in each], -1).detach().numpy()
            for a, each in zip(inputs, zip(*columns, strict=True), strict=True)
        ]
        return parts if isinstance(x, list) else parts[0]


def test_values_that_do_not_sum_up_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "DeepExplainer", Silent)
    assert "do not sum up" in found_in(explaining.sums_up).violation.kind


def test_the_command_prints_seed_counts_and_violations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(computing, "decompose", Planted("crash"))
    planted = Property("planted", programs(FEW), computing.computes_the_same, 1)
    monkeypatch.setattr(command, "PROPERTIES", [planted])
    assert command.main(["--examples", "3", "--seed", "5"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("seed 5\n")
    assert "VIOLATION decompose(model): raises KeyError" in said
    assert "class Model(nn.Module):" in said
    assert "1 violations" in said
    assert command.main(["--examples", "3", "--only", "nothing"]) == 0
