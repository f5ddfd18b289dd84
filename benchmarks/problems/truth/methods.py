"""The explanations that are compared, each a function of a model, samples and references.

All but LRP explain f(x) - mean f(references) against the same references. Gradient × input knows none: it
is taken as gradient × (x - mean of the references), which is the plain form when the reference is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import captum.attr
import numpy as np
import shap
import torch
from problems.truth.lrp import lrp
from problems.truth.shapley import shapley_values
from problems.truth.tasks import Net
from torch import Tensor

import rewriter

Explain = Callable[[Net, Tensor, Tensor], Tensor]
EXACT, LRP = "exact Shapley", "LRP, gates nothing"


def exact(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """Every subset."""
    return torch.stack([shapley_values(net, each, references) for each in x])


def ours(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """DeepSHAP with a rule for products."""
    explainer = rewriter.DeepExplainer(net, references, progress=False)
    return torch.from_numpy(explainer.shap_values(x)).squeeze(-1)


def stock(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """DeepSHAP on the model as it is: all that is left is the gradient at each reference."""
    explainer = shap.DeepExplainer(net, references)
    return torch.from_numpy(explainer.shap_values(x, check_additivity=False)).squeeze(-1)


def integrated_gradients(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """captum's, 50 points on each way from a reference, the mean over the references."""
    integrated = captum.attr.IntegratedGradients(net)
    ways = [integrated.attribute(x, reference[None], target=0, n_steps=50) for reference in references]
    return torch.stack(ways).mean(0)


def gradient_times_input(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """One backward pass."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
    return gradient * (x - references.mean(0))


def kernel(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """Fit shap's KernelExplainer with its defaults (2048 and some subsets, ten inputs at most), seeded."""

    def flat(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(rows).reshape(-1, *x.shape[1:])).squeeze(-1).numpy()

    state = np.random.get_state()
    np.random.seed(0)
    try:
        explainer = shap.KernelExplainer(flat, references.flatten(1).numpy())
        values = explainer.shap_values(x.flatten(1).numpy(), silent=True)
    finally:
        np.random.set_state(state)
    return torch.from_numpy(values).reshape(x.shape)


def relevance(net: Net, x: Tensor, references: Tensor) -> Tensor:
    """LRP-all, for the LSTM."""
    return lrp(net.rnn, net.head, x)


METHODS: dict[str, Explain] = {
    EXACT: exact,
    "ours": ours,
    "stock shap, undecomposed": stock,
    "integrated gradients": integrated_gradients,
    "gradient x input": gradient_times_input,
    "KernelExplainer": kernel,
    LRP: relevance,
}


def target(name: str, net: Net, x: Tensor, references: Tensor) -> Tensor:
    """Return what the attributions of a method should sum to, (B,)."""
    with torch.no_grad():
        f = net(x).squeeze(-1)
        return f if name == LRP else f - net(references).mean()
