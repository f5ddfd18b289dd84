"""The examples of the page on servers run, and answer what the explainer gives."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter import DeepExplainer, export_explainer_onnx
from tests.rewriter.jobs.test_jobs import Forecaster

PAGE = (Path(__file__).parents[3] / "docs/show_and_serve/serving.md").read_text(encoding="utf-8")
# float32 sums of some hundred terms, in another order.
EXACT = 1e-6


@pytest.fixture
def given() -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {"model": Forecaster().eval(), "background": torch.randn(5, 4, 3)}
    names["samples"] = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    return names


def run_blocks(kind: str, names: dict[str, Any]) -> None:
    blocks = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "serving.md", "exec"), names)


def test_onnxruntime(given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_explainer_onnx(given["model"], given["background"], "explainer.onnx")
    run_blocks("python", given)
    expected = DeepExplainer(given["model"], given["background"]).shap_values(given["samples"][:3])
    np.testing.assert_allclose(given["answer"]["shap_values"], expected, rtol=0, atol=EXACT)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_serve(given: dict[str, Any]) -> None:
    serve = pytest.importorskip("ray.serve", reason="Ray is large: `make ray` installs it and runs these")
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_blocks("python ray", given)
        expected = DeepExplainer(given["model"], given["background"]).shap_values(given["samples"][:1])
        np.testing.assert_allclose(given["values"], expected[0], rtol=0, atol=EXACT)
    finally:
        serve.shutdown()
        ray.shutdown()
