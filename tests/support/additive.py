"""How far the attributions of three explainers are from summing to what they explain."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import shap
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose

# Promised by the library, relative to the largest output, or 1.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def additivity_errors(model: nn.Module, x: Tensor, background: Tensor) -> dict[str, float]:
    """Return the error of stock shap, captum's DeepLift and our own explainer on the decomposed model."""
    with torch.no_grad():
        f, f0 = model(x).numpy(), model(background).numpy()
    scale = max(1.0, abs(f).max(), abs(f0).max())
    exact = decompose(model)
    values = {
        "shap": shap.DeepExplainer(exact, background).shap_values(x, check_additivity=False),
        "ours": DeepExplainer(model, background).shap_values(x, check_additivity=False),
    }
    errors = {
        name: abs(v.reshape(*x.shape, -1).sum(tuple(range(1, x.dim()))) - (f - f0.mean(0))).max() / scale
        for name, v in values.items()
    }
    with warnings.catch_warnings():
        # captum says that it registers hooks.
        warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
        _, delta = DeepLift(exact).attribute(
            x.clone().requires_grad_(),
            background[:1].expand_as(x).contiguous(),
            target=0,
            return_convergence_delta=True,
        )
    return errors | {"captum": delta.abs().max().item() / scale}


def stock_error(model: nn.Module, x: Tensor, background: Tensor) -> float:
    """Return the error of stock shap on the model as it is, relative to the largest output or 1."""
    with warnings.catch_warnings(), torch.no_grad():
        # shap says of recurrent layers that it has no rule for them.
        warnings.simplefilter("ignore")
        f, f0 = model(x).numpy(), model(background).numpy()
        with torch.enable_grad():
            values = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    summed = np.asarray(values).reshape(*x.shape, -1).sum(tuple(range(1, x.dim())))
    return float(abs(summed - (f - f0.mean(0))).max() / max(1.0, abs(f).max(), abs(f0).max()))


def assert_additive(model: nn.Module, x: Tensor, background: Tensor) -> None:
    """Assert that all three are additive in float64 and float32."""
    for dtype, tolerance in TOLERANCE.items():
        typed = copy.deepcopy(model).to(dtype).eval()
        errors = additivity_errors(typed, x.to(dtype), background.to(dtype))
        assert max(errors.values()) <= tolerance, errors


def assert_copies_compute_the_same(model: nn.Module, x: Tensor) -> None:
    """Assert that a decomposed model survives deepcopy and pickle."""
    exact = decompose(model)
    for each in (copy.deepcopy(exact), pickle.loads(pickle.dumps(exact))):
        assert torch.equal(each(x), exact(x))
