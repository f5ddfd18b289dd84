"""What cannot be written is refused by its own name, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import export_explainer_onnx


class Plain(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Counting(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


def matrices(x: Tensor) -> Tensor:
    return torch.linalg.inv(x.view(-1, 2, 2)).flatten(1)


def refused(model: nn.Module, path: Path, message: str, x: Tensor | None = None, **options: Any) -> None:
    with pytest.raises(RewriteError, match=message):
        export_explainer_onnx(model.eval(), torch.randn(3, 4) if x is None else x, path, **options)
    assert not path.exists()


def test_operations_without_a_form_in_onnx(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    refused(Plain(lambda x: torch.fft.rfft(x).abs()), path, "complex numbers")
    refused(Plain(matrices), path, "linalg_inv")


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: x.topk(2, 1).values, "topk"),
        (lambda x: x.median(1).values, "median"),
        (lambda x: nn.functional.adaptive_max_pool1d(x, 3), "adaptive_max_pool1d"),
    ],
)
def test_rules_that_go_by_values(operation: Callable[[Tensor], Tensor], name: str, tmp_path: Path) -> None:
    refused(Plain(operation), tmp_path / "x.onnx", f"{name}.*: its rule goes by values")


def test_decisions_by_values(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    refused(
        Plain(lambda x: x.tanh() if x.abs().sum() >= 0 else x),
        path,
        "test_refusals.py:.*must not decide by values",
    )

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh() * (len(x) / x.shape[0])

    refused(Counted(4, 2), path, r"frozen.*len\(x\)")

    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (x > 0).any(1, keepdim=True))

    refused(Masked(4, 2), path, "decides by its inputs alone")


def test_state_between_calls(tmp_path: Path) -> None:
    refused(Counting(4, 2), tmp_path / "x.onnx", "keeps something between calls|not differ|same input")


def test_bad_arguments(tmp_path: Path) -> None:
    path, model = tmp_path / "x.onnx", nn.Linear(4, 2)
    refused(model.double(), path, "expected float32, got float64", torch.randn(3, 4).double())
    model = model.float()
    for outputs in ([2], [], "0", [0.5]):
        refused(model, path, "outputs: expected places among 2", outputs=outputs)
    refused(model, path, "pass references_as_input=True", time_axis=1)
    refused(model, path, "time_axis: expected an axis", time_axis=2, references_as_input=True)
    refused(model, path, "opset: expected", opset=3)
    refused(model, tmp_path / "missing" / "x.onnx", "^export_explainer_onnx: .*make the folder first")
    refused(model, path, "tolerance: expected a positive number, got 0", tolerance=0)


@pytest.mark.parametrize("most", [3, 10_000])
def test_decisions_by_the_number_of_rows(tmp_path: Path, most: int) -> None:
    class Many(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x).tanh()
            return y if len(x.shape) * x.shape[0] > 2 * most else 2 * y

    line = Many.forward.__code__.co_firstlineno + 2
    refused(
        Many(4, 2), tmp_path / "x.onnx", rf"at test_refusals\.py:{line} the model's code goes another way"
    )


def test_inputs_may_be_called_as_outputs_are(tmp_path: Path) -> None:
    class Named(nn.Linear):
        def forward(self, references: Tensor, prediction: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(references * prediction)

    given = [torch.randn(3, 4), torch.randn(3, 4)]
    report = export_explainer_onnx(Named(4, 2), given, tmp_path / "x.onnx", references_as_input=True)
    assert list(report.inputs)[:2] == ["references", "prediction"]
    assert len({*report.inputs, *report.outputs}) == 8
