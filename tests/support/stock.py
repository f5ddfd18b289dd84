"""Stock shap on the decomposed model, beside our explainer on the original.

Two transports of the same rules, over one rewriting: that they agree shows that neither loses anything on
the way. It says nothing of the rules or of the rewriting; those have oracles of their own.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import shap
import torch
from torch import nn

from rewriter import DeepExplainer, decompose

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}


def stock(model: nn.Module, background: Any, x: Any, **options: Any) -> Any:
    """Explain the decomposed model with stock shap."""
    explainer = shap.DeepExplainer(decompose(model), background)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return explainer.shap_values(x, check_additivity=False, **options)


def assert_same(got: Any, expected: Any, tolerance: float) -> None:
    """Assert equality relative to the largest value.

    In float32 relative to 1 at least: attributions are differences of outputs of that size, whose
    rounding both explainers inherit.
    """
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b, tolerance)
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    floor = 1.0 if tolerance >= TOLERANCE[torch.float32] else 0.0
    assert np.abs(got - expected).max() <= tolerance * max(floor, np.abs(expected).max())


def check(model: nn.Module, x: Any, background: Any) -> None:
    """Compare with stock shap in float32 and, with the tighter tolerance, in float64."""
    for dtype, tolerance in TOLERANCE.items():
        model = model.to(dtype).eval()
        a, b = ([p.to(dtype) for p in v] if isinstance(v, list) else v.to(dtype) for v in (x, background))
        explainer = DeepExplainer(model, b)
        np.testing.assert_allclose(
            explainer.expected_value, shap.DeepExplainer(decompose(model), b).expected_value, rtol=1e-6
        )
        assert_same(explainer.shap_values(a), stock(model, b, a), tolerance)


def quietly(explainer: Any, x: Any, **options: Any) -> Any:
    """Return shap's values, without its check and its warnings of modules that it does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return explainer.shap_values(x, check_additivity=False, **options)
