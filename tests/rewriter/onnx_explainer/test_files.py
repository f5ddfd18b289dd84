"""A file gives, in onnxruntime, what DeepExplainer gives, what stock shap gives, and what adds up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import shap
import torch
from torch import Tensor

from rewriter import DeepExplainer, decompose, export_explainer_onnx
from tests.rewriter.onnx_explainer.models import CASES, Case, atoms, own_cell, recurrent
from tests.support.exports import unused

# What the library promises: 1e-5 to the engine, additive to 1e-6 of max(1, |f|), in float32.
CLOSE, ADDITIVE = 1e-5, 1e-6
Array = np.ndarray[Any, Any]


class Written(NamedTuple):
    """A file, what it was made of, samples that it was not checked with, and what it makes of them."""

    case: Case
    path: Path
    report: Any
    samples: list[Tensor]
    references: list[Tensor]
    found: dict[str, Array]


def written(case: Case, path: Path, rows: int = 3) -> Written:
    model, background, options = case
    model.eval()
    given = background if len(background) > 1 else background[0]
    report = export_explainer_onnx(model, given, path, **options)
    samples = [each[torch.arange(rows) % len(each)] for each in background]
    samples = [x + 0.5 * torch.randn(x.shape) if x.is_floating_point() else x.roll(1, 0) for x in samples]
    references = background
    if "time_axis" in options:
        # Neither as many references nor as many steps as when it was written.
        samples, references = [torch.randn(rows, 8, 2)], [torch.randn(6, 8, 2)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = [*samples, *references] if "references_as_input" in options else samples
    names = [each.name for each in session.get_inputs()]
    outputs = session.run(None, {name: each.numpy() for name, each in zip(names, feed, strict=True)})
    found = dict(zip((each.name for each in session.get_outputs()), outputs, strict=True))
    return Written(case, path, report, samples, references, found)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.__name__)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    torch.manual_seed(0)
    return written(request.param(), tmp_path_factory.mktemp("files") / "explainer.onnx")


def values_of(found: dict[str, Array]) -> list[Array]:
    return [each for name, each in found.items() if name.startswith("shap_values")]


def of_outputs(values: Array, shape: Sequence[int], options: dict[str, Any]) -> Array:
    """Bring values to (M, elements, outputs that were asked for)."""
    flat = values.reshape(len(values), int(np.prod(shape[1:])), -1)
    return flat[..., options["outputs"]] if "outputs" in options else flat


def test_values_are_the_engines(file: Written) -> None:
    model, _, options = file.case
    several = len(file.samples) > 1
    explainer = DeepExplainer(
        model, file.references if several else file.references[0], output=options.get("output")
    )
    expected = explainer.shap_values(file.samples if several else file.samples[0])
    for a, b, x in zip(values_of(file.found), expected if several else [expected], file.samples, strict=True):
        b = of_outputs(b, x.shape, options)
        assert np.abs(a.reshape(b.shape) - b).max() <= CLOSE * np.abs(b).max()
        # Something was explained.
        assert np.abs(b).max() > 1e-3


def test_values_add_up(file: Written) -> None:
    prediction, base = file.found["prediction"], file.found["base_value"]
    rows = len(prediction)
    change = (prediction - base).reshape(rows, 1, -1)
    total = sum(
        each.reshape(rows, int(np.prod(x.shape[1:])), -1).sum(1, dtype=float)
        for each, x in zip(values_of(file.found), file.samples, strict=True)
    )
    error = np.abs(total - of_outputs(change, (rows, 1), file.case[2])[:, 0])
    assert error.max() <= ADDITIVE * max(1, np.abs(prediction).max())


def test_prediction_and_base_value_are_the_models(file: Written) -> None:
    model, _, options = file.case
    with torch.no_grad():
        outputs, of_references = (model(*each) for each in (file.samples, file.references))
    if "output" in options:
        outputs, of_references = outputs[options["output"]], of_references[options["output"]]
    assert np.abs(file.found["prediction"] - outputs.numpy()).max() <= CLOSE
    assert np.abs(file.found["base_value"] - of_references.mean(0).numpy()).max() <= CLOSE


def test_weights_are_stored_once(file: Written) -> None:
    stored = [each.raw_data for each in onnx.load(file.path).graph.initializer]
    for weight in file.case[0].parameters():
        forms = {
            weight.detach().numpy().tobytes(),
            weight.detach().movedim(0, -1).contiguous().numpy().tobytes(),
        }
        assert sum(each in forms for each in stored) <= 1
    model, background, options = file.case
    held = [*model.parameters(), *([] if "references_as_input" in options else background)]
    total = sum(each.numel() * each.element_size() for each in held)
    # A node takes 150 bytes, names included; all else that is stored are sizes.
    assert file.report.size <= 1.1 * total + 1000 + 220 * sum(file.report.operators.values())


def test_no_constant_is_left_behind(file: Written) -> None:
    assert unused(onnx.load(file.path).graph) == []


def test_report_says_what_the_file_takes(file: Written) -> None:
    assert file.report.size == file.path.stat().st_size
    assert {shape[0] for shape in file.report.inputs.values()} <= {"batch", "references"}
    assert file.report.outputs["prediction"][0] == "batch"
    assert "batch of 1" in str(file.report)
    assert file.report.to_dict()["compared"][0]["rows"] == 1
    assert not set(file.report.operators) & {"LSTM", "GRU", "RNN", "Loop", "If"}


@pytest.mark.parametrize("file", [recurrent, atoms, own_cell], indirect=True, ids=lambda case: case.__name__)
def test_values_are_those_of_stock_shap_on_the_decomposed_model(file: Written) -> None:
    model, (background,), options = file.case
    (x,) = file.samples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stock = shap.DeepExplainer(decompose(model, x), background)
        expected = of_outputs(stock.shap_values(x, check_additivity=False), x.shape, options)
    # Stock shap computes in float32, too, by another path: rounding of both.
    assert (
        np.abs(values_of(file.found)[0].reshape(expected.shape) - expected).max()
        <= CLOSE * np.abs(expected).max()
    )
