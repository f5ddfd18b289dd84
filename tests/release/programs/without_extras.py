"""What works where nothing optional is installed, and what the rest says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from models import built, sum_error

import rewriter
from rewriter import DeepExplainer, assert_equivalent, decompose, diagnose


def said(part: Callable[[], Any]) -> str:
    """Return what the error of a missing extra says."""
    try:
        part()
    except (rewriter.RewriteError, ImportError) as error:
        return str(error)
    raise AssertionError("it worked, although what it needs is not there")


model, background, x = built()
assert_equivalent(model, decompose(model), x)
explainer = DeepExplainer(model, background)
values = explainer.shap_values(x)
assert sum_error(model, background, x, values) < 1e-6
assert explainer.backend == "C", explainer.backend
assert diagnose(decompose(model), x, background)
rewriter.html_report(explainer, x, "report.html")
for part, extra in (
    (lambda: explainer(x), "shap"),
    (rewriter.register_shap, "shap"),
    (rewriter.register_captum, "captum"),
    (lambda: rewriter.export_onnx(model, x, "model.onnx"), "onnx"),
    (lambda: rewriter.export_explainer_onnx(model, x, "model.onnx"), "onnx"),
    (lambda: rewriter.plot.heatmap(values[0, :, :, 0]), "plots"),
    (lambda: rewriter.keras.to_keras(model.rnn), "keras"),
    (lambda: rewriter.ray.Attributor(model, background), "ray"),
):
    message = said(part)
    assert f"pip install 'rnn-rewriter[{extra}]'" in message, (extra, message)
optional = {"shap", "captum", "onnx", "onnxscript", "onnxruntime", "matplotlib", "typer", "keras", "ray"}
assert not optional & sys.modules.keys()
print(rewriter.__version__)
