"""Transforms of torch.func and torch.compile inside a model: what is said of them is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose, diagnose

X = torch.randn(2, 3)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: torch.tanh(self.l(row)) ** 2)(x)


class Slopes(Rows):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: self.l(y).tanh().sum())(x)


def product(x: Tensor) -> Tensor:
    return torch.tanh(x) * x


class Compiled(Rows):
    def __init__(self) -> None:
        super().__init__()
        self.product: Callable[[Tensor], Tensor] = torch.compile(product, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.l(x))


@pytest.mark.parametrize("kind", [Rows, Slopes])
def test_a_transform_is_named(kind: type[Rows]) -> None:
    model = kind().eval()
    line = kind.forward.__code__.co_firstlineno + 1
    report: Any = decompose(model).report
    assert (
        f"a transform of torch.func, such as vmap or grad (test_transforms.py:{line})" in report.islands[""]
    )
    for given in (model, decompose(model)):
        with pytest.raises(RewriteError, match=rf"test_transforms\.py:{line} runs in a transform of torch"):
            diagnose(given, X, 0 * X)


def test_what_is_compiled_runs_as_it_is_written() -> None:
    model = Compiled().eval()
    with torch.no_grad():
        expected = model(X) - model(0 * X)
    found = diagnose(model, X, 0 * X)
    assert {row.operation for row in found.broken} == {"mul", "tanh"}
    assert not found
    assert diagnose(decompose(model), X, 0 * X)
    values = torch.as_tensor(DeepExplainer(model, 0 * X).shap_values(X)).float()
    # Attributions of float32 numbers of about 1.
    torch.testing.assert_close(values.sum(1), expected, rtol=0, atol=1e-5)
    # The next call is compiled again.
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_reports_say_whether_all_has_a_rule() -> None:
    gru = nn.GRU(3, 2)
    reports: list[Any] = [decompose(gru).report, decompose(gru, torch.zeros(4, 1, 3)).report]
    assert all(reports)
    # A part without a rule; code that was not looked into, and code that was.
    renormed: Any = decompose(nn.Sequential(nn.Linear(3, 3), Renormed())).report
    assert not renormed
    assert renormed.uncovered
    assert not decompose(Compiled()).report
    assert decompose(Compiled(), X).report


class Renormed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.renorm(2, 0, 0.1)
