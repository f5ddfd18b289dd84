"""What ``rewriter.DeepExplainer`` makes of the inputs that people have: an answer or a clear error."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from rewriter import DeepExplainer, RewriteError
from tests.support.models import gallery
from tests.support.models.recurrent_models import CellState
from tests.support.stock import assert_same, stock


def test_a_sample_equal_to_the_only_reference_gets_zeros() -> None:
    x = torch.randn(1, 5, 3)
    assert not DeepExplainer(gallery.Classifier(), x).shap_values(x).any()


def test_arrays_are_taken_for_tensors() -> None:
    model = nn.Linear(3, 2)
    x, background = np.random.default_rng(0).normal(size=(2, 2, 3))
    got = DeepExplainer(model, background).shap_values(x)
    expected = (x - background.mean(0))[..., None] * model.weight.detach().numpy().T
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_samples_of_the_background_get_the_right_answer() -> None:
    model, background = gallery.Classifier().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    expected = stock(model, background, background)
    assert_same(DeepExplainer(model, background).shap_values(background), expected, 1e-11)
    one = stock(model, background[:1], background)
    assert_same(DeepExplainer(model, background[:1]).shap_values(background), one, 1e-11)
    assert not one[0].any()


def test_frames_bring_names() -> None:
    background = pd.DataFrame(np.random.default_rng(0).normal(size=(4, 3)), columns=["a", "b", "c"])
    # Whole numbers, as frames often hold; a frame's numbers may not be written to.
    x = pd.DataFrame({"a": [1, 2], "b": [0, 5], "c": [3, -1]})
    model = nn.Linear(3, 2)
    explanation = DeepExplainer(model, background)(x)
    assert explanation.feature_names == ["a", "b", "c"]
    expected = (x.to_numpy() - background.to_numpy().mean(0))[..., None] * model.weight.detach().numpy().T
    np.testing.assert_allclose(explanation.values, expected, atol=1e-6)


def test_arrays_get_the_dtype_of_the_background() -> None:
    """Token numbers stay what they are, beside floats."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.linear = nn.Embedding(9, 3), nn.Linear(2, 3)

        def forward(self, token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.embedding(token), self.linear(x)], -1)

    model = Both()
    background = [np.zeros(4, dtype=np.int64), np.random.default_rng(0).normal(size=(4, 2))]
    values = DeepExplainer(model, background).shap_values([np.zeros(3, dtype=np.int64), np.ones((3, 2))])
    assert [each.shape for each in values] == [(3, 6), (3, 2, 6)]
    assert not values[0].any()
    expected = (1 - background[1].mean(0))[:, None] * model.linear.weight.detach().numpy().T
    np.testing.assert_allclose(values[1][0, :, 3:], expected, atol=1e-6)


@pytest.mark.parametrize("make", ["gradient", "inference", "strided", "no_grad", "autocast"])
def test_any_float_tensor_will_do(make: str) -> None:
    model, x, background = gallery.Classifier("GRU"), torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    expected = DeepExplainer(model, background).shap_values(x)

    def explain(x: torch.Tensor, background: torch.Tensor) -> Any:
        return DeepExplainer(model, background).shap_values(x)

    if make == "gradient":
        leaf = x.clone().requires_grad_()
        got = explain(leaf * 1, background.clone().requires_grad_())
        assert leaf.grad is None
    elif make == "inference":
        with torch.inference_mode():
            a, b = x.clone(), background.clone()
            inside = explain(a, b)
        got = explain(a, b)
        np.testing.assert_array_equal(inside, expected)
    elif make == "strided":
        got = explain(x.transpose(0, 2).contiguous().transpose(0, 2), background.flip(1).flip(1))
    elif make == "no_grad":
        with torch.no_grad():
            got = explain(x, background)
    else:
        # Half precision would lose what attributions are made of: it is switched off.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = explain(x, background)
    # Strides may change the order of a sum.
    assert_same(got, expected, 1e-6 if make == "strided" else 0.0)


def test_explainer_keeps_a_background_of_its_own() -> None:
    model, x, background = gallery.Classifier("GRU"), torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    explainer = DeepExplainer(model, background)
    expected = explainer.shap_values(x)
    background.zero_()
    np.testing.assert_array_equal(explainer.shap_values(x), expected)


BAD: dict[str, tuple[Any, str]] = {
    "NaN": (torch.full((2, 5, 3), torch.nan), "X, input 0: expected finite numbers"),
    "steps": (torch.randn(2, 6, 3), r"rows of shape \(5, 3\) like the background, got \(6, 3\)"),
    "dtype": (torch.randn(2, 5, 3).double(), "expected dtype torch.float32"),
    "list": ([torch.randn(2, 5, 3)], "expected one tensor like the background, got list"),
    "type": ("text", "expected a Tensor or an array, got str"),
    "half": (
        torch.randn(2, 5, 3).half(),
        r"got torch.float16; .*float\(\)",
    ),
    "complex": (torch.randn(2, 5, 3).to(torch.complex64), "got torch.complex64"),
    "integers": (
        torch.ones(2, 5, 3).long(),
        "expected dtype torch.float32 like .*, got torch.int64",
    ),
    "bool": (torch.ones(2, 5, 3).bool(), "expected dtype torch.float32 like the background, got torch.bool"),
    "sparse": (torch.randn(2, 5, 3).to_sparse(), "expected a dense tensor.*sparse_coo"),
    "meta": (torch.randn(2, 5, 3, device="meta"), "expected a dense tensor with data, got a meta tensor"),
    "objects": (np.array([[None]]), "expected numbers, got a ndarray of object"),
    "words": (pd.DataFrame({"a": ["b"]}), "expected numbers, got a DataFrame of"),
    "infinity": (torch.randn(2, 5, 3).index_fill(0, torch.tensor(1), torch.inf), "finite.*first in row 1"),
    "one sample": (torch.randn(5, 3), r"rows of shape \(5, 3\) like the background, got \(3,\)"),
    "nothing": (None, "expected a Tensor or an array, got NoneType"),
    "number": (torch.tensor(1.0), "expected the batch in dimension 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    x, message = BAD[case]
    with pytest.raises(RewriteError, match=message):
        DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3)).shap_values(x)


LISTS: dict[str, tuple[Any, str]] = {
    "tensor": (torch.randn(2, 3), "expected a list of 2 tensors like the background, got Tensor"),
    "one": ([torch.randn(2, 3)], "X: expected 2 inputs like the background, got 1"),
    "three": ([torch.randn(2, 3)] * 3, "X: expected 2 inputs like the background, got 3"),
    "rows": ([torch.randn(2, 3), torch.randn(3, 2)], "X, input 1: expected 2 rows like input 0, got 3"),
    "order": ([torch.randn(2, 2), torch.randn(2, 3)], r"X, input 0: expected rows of shape \(3,\)"),
}


@pytest.mark.parametrize("case", LISTS)
def test_bad_lists(case: str) -> None:
    x, message = LISTS[case]
    explainer = DeepExplainer(CellState("GRUCell"), [torch.randn(4, 3), torch.randn(4, 2)])
    with pytest.raises(RewriteError, match=message):
        explainer.shap_values(x)


def test_bad_background() -> None:
    for background, message in (
        (torch.empty(0, 5, 3), "at least one sample"),
        (torch.full((2, 5, 3), torch.inf), "background, input 0: expected finite"),
        ([], "at least one sample"),
        (None, "expected a Tensor or an array, got NoneType"),
        (torch.randn(2, 5, 3).bfloat16(), "expected float32, float64 or integers, got torch.bfloat16"),
        (torch.ones(2, 5, 3).long(), "expected floating point numbers, got torch.int64"),
        (torch.randn(2, 5, 3).double(), "rnn: expected input of dtype torch.float32, got torch.float64"),
        (torch.randn(2, 5, 4), "rnn: expected"),
        ([torch.randn(2, 5, 3)] * 2, r"fails on inputs \(2, 5, 3\) of torch.float32, .* TypeError"),
        ([torch.randn(2, 5, 3), torch.randn(3, 5, 3)], "input 1: expected 2 rows like input 0, got 3"),
    ):
        with pytest.raises(RewriteError, match=message):
            DeepExplainer(gallery.Classifier(), background)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    model = gallery.Classifier().to(dtype)
    with pytest.raises(RewriteError, match=re.escape("explain copy.deepcopy(model).float()")):
        DeepExplainer(model, torch.randn(3, 5, 3, dtype=dtype))
    explainer = DeepExplainer(copy.deepcopy(model).float(), torch.randn(3, 5, 3))
    assert explainer.shap_values(torch.randn(2, 5, 3)).shape == (2, 5, 3, 2)


def test_models_without_usable_weights_are_refused() -> None:
    with torch.inference_mode():
        made_inside = gallery.Classifier()
    with pytest.raises(RewriteError, match=r"weight\w*: made under torch.inference_mode\(\)"):
        DeepExplainer(made_inside, torch.randn(3, 5, 3))
    with pytest.raises(RewriteError, match="a meta tensor has no numbers"):
        DeepExplainer(gallery.Classifier().to("meta"), torch.randn(3, 5, 3))


OUTPUTS: dict[str, tuple[Any, str]] = {
    "integers": (lambda out: out.argmax(1), "expected outputs in float32 or float64.*torch.int64"),
    "half": (lambda out: out.half(), "expected outputs in float32 or float64.*torch.float16"),
    "none": (lambda out: out[:, :0], r"at least one per sample, got torch.float32 of shape \(3, 0\)"),
    "infinite": (lambda out: out * torch.inf, "expected finite outputs"),
    "key": ("logits", r"output: .* to have 'logits', got Tensor float32 \(3, 2\)"),
    "number": (7, r"output: .* to have 7, got Tensor float32 \(3, 2\)"),
    "sample": (0, r"expected an output with the batch of 3 in dimension 0, got \(2,\)"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_bad_outputs(case: str) -> None:
    output, message = OUTPUTS[case]
    with pytest.raises(RewriteError, match=message):
        DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3), output=output)


@pytest.mark.parametrize("max_memory", [0, -1, "1 GB", float("inf")])
def test_bad_memory(max_memory: Any) -> None:
    with pytest.raises(RewriteError, match="max_memory: expected a positive number of bytes"):
        DeepExplainer(gallery.Classifier(), torch.randn(3, 5, 3), max_memory=max_memory)


def test_bad_names() -> None:
    x = torch.randn(3, 5, 3)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"feature_names": ["a"]}, "feature_names: expected 3 names, one per feature, or 15"),
        ({"output_names": ["a"]}, "output_names: expected 2 names, got 1"),
    )
    for options, message in cases:
        with pytest.raises(RewriteError, match=message):
            DeepExplainer(gallery.Classifier(), x, **options)(x)


def test_inner_module_may_take_time_first() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gru(x.transpose(0, 1))[0][-1]

    model = TimeFirst().double()
    # As many samples, or references, as steps, so that sizes alone do not tell.
    for samples, references in ((2, 3), (5, 3), (3, 5), (5, 5)):
        background = torch.randn(references, 5, 3, dtype=torch.float64)
        x = torch.randn(samples, 5, 3, dtype=torch.float64)
        got = DeepExplainer((model, model.gru), background).shap_values(x)
        # What it takes is the input, turned around; the values have the batch first.
        expected = DeepExplainer(model, background).shap_values(x)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)
