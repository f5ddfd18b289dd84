"""What cannot be exported as promised is refused, and named."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from passes.errors import DeclinedError, RewriteError
from rewriter import export_onnx
from tests.support.exports import Calls, X, check_against_torch


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x, torch.zeros(1, 2, 4))[0]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.gru(x)[0]
        return out if out.sum() > 0 else -out


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (lambda x: x, X, {}, r"expected a torch\.nn\.Module, got function"),
        (nn.GRU(3, 4), X, {"opset": 12}, r"opset: expected 13 to 24, or None for the lowest, got 12"),
        (nn.GRU(3, 4), X, {"tolerance": "1e-3"}, r"tolerance: expected a positive number, got '1e-3'"),
        (nn.GRU(3, 4), X, {"tolerance": float("nan")}, r"tolerance: expected a positive number, got nan"),
        (nn.GRU(3, 4), X, {"operators": None}, r"operators: expected names of ONNX operators"),
        (nn.GRU(3, 4).bfloat16(), X.bfloat16(), {}, r"holds bfloat16.*model\.float\(\)"),
        (nn.GRU(3, 4), (X, X, X), {}, r"do not fit GRU\.forward: too many positional"),
        (nn.GRU(3, 4), 3, {}, r"expected tensors in example_inputs"),
        (nn.GRU(3, 4), nn.utils.rnn.pack_sequence([X[0]]), {}, r"hold a PackedSequence.*padded"),
        (nn.GRU(3, 4), X, {"input_names": ["a", "b"]}, r"input_names: expected 1 different name\(s\)"),
        (nn.GRU(3, 4), X, {"batch_axes": {"x": 0}}, r"batch_axes: expected an axis for some of input"),
        (nn.GRU(3, 4), X, {"batch_axes": {"input": 3}}, r"shape \(2, 5, 3\), and no axis 3"),
        (nn.GRU(3, 4), X[0], {}, r"no axis of the inputs \(input \(5, 3\)\) is a batch.*batch_axes"),
        (FixedBatch(), X, {}, r"batch dimension is frozen \(with the batch first: RuntimeError: Expected"),
        (nn.GRU(4, 4), X, {}, r"do not run through the model.*RuntimeError: input\.size"),
    ],
)
def test_refusals_before_the_export(
    tmp_path: Path, model: Any, inputs: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RewriteError, match=message):
        export_onnx(model, inputs, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Branching(), {"batch_axes": {"x": 0}}, r"torch\.export cannot follow the model.*values of tensors"),
        (FixedBatch(), {"batch_axes": {"x": 0}}, r"batch dimension of x is frozen.*fixes it at 2"),
        (nn.GRU(3, 4), {"batch_axes": {"input": 0}}, r"number of steps is free.*batch_axes.*loops=True"),
        (nn.GRU(3, 4), {"output_names": ["a"]}, r"output_names: expected 2 different name"),
        (nn.Linear(3, 4), {"loops": True}, r"length of the sequences is frozen.*loops=False"),
    ],
)
def test_refusals_during_the_export(
    tmp_path: Path, model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RewriteError, match=message):
        export_onnx(model, X, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


class OwnLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[1], 4)
        for t in range(len(x)):
            state = self.cell(x[t], state)
        return state


def test_a_loop_of_the_models_own_is_named(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=r"frozen: the model's own code calls cell step by step.*a layer"):
        export_onnx(OwnLoop(), torch.randn(5, 2, 3), tmp_path / "m.onnx", loops=True)


def test_what_onnxruntime_lacks_in_double_precision(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 2)).double()
    with pytest.raises(RewriteError, match=r"does not load the model: .*Conv.*; export model\.float\(\)"):
        export_onnx(model, torch.randn(2, 3, 5).double(), tmp_path / "m.onnx")


def test_what_cannot_be_rewritten_is_declined(tmp_path: Path) -> None:
    model = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(DeclinedError, match="parametrized"):
        export_onnx(model, X, tmp_path / "m.onnx")


def test_loops_with_a_length_that_is_also_the_number_of_features(tmp_path: Path) -> None:
    model = nn.LSTM(6, 5, batch_first=True)
    report = export_onnx(model, torch.randn(3, 6, 6), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"input": ("batch", "time", 6)}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 9, 6))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.gru(x * mask[:, :, None])[0] * mask[:, :, None]


def test_loops_with_inputs_of_one_length(tmp_path: Path) -> None:
    model = Masked()
    report = export_onnx(model, (torch.randn(3, 4, 4), torch.rand(3, 4)), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"x": ("batch", "time", 4), "mask": ("batch", "time")}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(2, 9, 4), torch.rand(2, 9))


def test_a_model_may_write_into_its_input(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.GRU(3, 4, batch_first=True))
    example = torch.randn(2, 5, 3)
    before = example.clone()
    export_onnx(model, example, tmp_path / "m.onnx")
    assert torch.equal(example, before)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 5, 3))


def test_an_output_may_be_none(tmp_path: Path) -> None:
    model = Calls(lambda _, out: (out, None))
    assert list(export_onnx(model, X, tmp_path / "m.onnx").outputs) == ["output"]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda _, out: {"o": out, "n": 3}, r"expected tensors .*got int at output\['n'\]"),
        (lambda _, out: out.to_sparse(), r"got a sparse, nested or quantized one at output; .*to_dense"),
        (lambda _, out: nn.functional.dropout(out, 0.5, True), "different outputs for the same input"),
        (lambda _, out: out * torch.nan, "no finite number for the example input"),
        (lambda _, out: (out, out / 0 * 0), "no finite number for the example input"),
        (lambda x, out: out / 0 if len(x) == 1 else out, "no finite number for the batch of 1|differ"),
    ],
)
def test_outputs_that_cannot_be_compared(
    tmp_path: Path, end: Callable[[torch.Tensor, torch.Tensor], Any], message: str
) -> None:
    with pytest.raises(RewriteError, match=message):
        export_onnx(Calls(end), X + 1, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_the_model_does_not_take_is_named(tmp_path: Path) -> None:
    table = torch.randn(7, 4)
    model = Calls(lambda x, out: out + table[torch.arange(x.shape[1])])
    with pytest.raises(RewriteError, match=r"does not run a batch of 5, time of 69: IndexError.*say how far"):
        export_onnx(model, X, tmp_path / "m.onnx", loops=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_layer_is_declined_with_advice_that_fits(tmp_path: Path) -> None:
    with pytest.raises(DeclinedError, match=r"scripted module(.|\n)*\nMend them, then export\.$") as caught:
        export_onnx(torch.jit.script(nn.LSTM(3, 4)), X, tmp_path / "m.onnx")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.declines) == (str(caught.value), caught.value.declines)
