"""Calls and modules of losses. Nearly all are made of operations that have rules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from passes.operations.contract import Build, Plain, Rule, Textbook, Varies, is_number, is_plain, pulled
from passes.operations.losses import of_classes, of_elements, of_vectors
from passes.operations.losses.cross_entropy import CrossEntropy, cross_entropy_pull
from passes.operations.losses.reduction import loss, reduction_named
from passes.operations.losses.variance import OfVariance
from passes.operations.operation import Kind, Operation, described, nonlinear

_TWO = ("input", "target")
_WEIGHTED = (*_TWO, "weight")


def _cross_entropy(
    varies: Varies,
    input: Any,
    target: Any,
    weight: Any = None,
    ignore_index: Any = -100,
    reduction: Any = "mean",
    label_smoothing: Any = 0.0,
) -> Textbook | None:
    options = {
        "ignore_index": ignore_index,
        "reduction": reduction_named(reduction),
        "label_smoothing": label_smoothing,
    }
    if varies(weight) or not all(map(is_plain, options.values())):
        return None
    return CrossEntropy(**options), (input, target) if weight is None else (input, target, weight)


def _linear_cross_entropy(
    varies: Varies,
    input: Any,
    linear_weight: Any,
    target: Any,
    linear_bias: Any = None,
    weight: Any = None,
    reduction: Any = "mean",
    ignore_index: Any = None,
    label_smoothing: Any = 0.0,
    options: Any = None,
) -> Textbook | None:
    # The last option changes how much memory is needed.
    if not all(map(is_plain, (reduction, ignore_index, label_smoothing))):
        return None
    settings = {"reduction": reduction, "label_smoothing": label_smoothing}
    if ignore_index is not None:
        settings["ignore_index"] = ignore_index
    given = [each for each in (linear_bias, weight) if each is not None]

    def entropy(x: Any, matrix: Any, target: Any, *others: Any) -> Any:
        bias = others[0] if linear_bias is not None else None
        own = others[-1] if weight is not None else None
        # Classes may be those of many places.
        bias = None if bias is None else bias.flatten()
        scores = F.linear(x, torch.flatten(matrix, 0, -2), bias)
        return F.cross_entropy(scores.reshape(x.shape[:-1] + matrix.shape[:-1]), target, own, **settings)

    return Plain(entropy), (input, linear_weight, target, *given)


def _gaussian_nll(
    varies: Varies,
    input: Any,
    target: Any,
    var: Any,
    full: Any = False,
    eps: Any = 1e-6,
    reduction: Any = "mean",
) -> Textbook | None:
    if is_number(var):
        lower = loss(partial(of_elements.gaussian_nll, var=var), _TWO, "full", "eps")
        return lower(varies, input=input, target=target, full=full, eps=eps, reduction=reduction)
    lower = loss(of_elements.gaussian_nll, (*_TWO, "var"), "full", "eps")
    found = lower(varies, input=input, target=target, var=var, full=full, eps=eps, reduction=reduction)
    return None if found is None else (OfVariance(found[0]), found[1])


class LossOf(nn.Module):
    """A loss module of torch's, as a call of its function.

    Args:
        function: its name in ``torch.nn.functional``.
        settings: of the module, by the names that the function has for them.
        weights: tensors that belong to the module.

    Example:
        >>> import torch
        >>> LossOf("mse_loss", {"reduction": "sum"}, {})(torch.ones(2), torch.zeros(2))
        tensor(2.)

    """

    def __init__(self, function: str, settings: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.settings = dict(settings)
        self.given = tuple(name for name, each in weights.items() if each is not None)
        for name in self.given:
            self.register_buffer(name, weights[name])

    def forward(self, *operands: Any) -> Any:
        """Return the loss."""
        weights = {name: getattr(self, name) for name in self.given}
        return getattr(F, self.function)(*operands, **self.settings, **weights)


def _module(function: str, settings: tuple[str, ...], weights: tuple[str, ...] = ()) -> Build:
    def build(module: Any) -> nn.Module:
        known = {name: getattr(module, name) for name in (*settings, "reduction")}
        return LossOf(function, known, {name: getattr(module, name) for name in weights})

    return build


CALLS: tuple[Operation, ...] = (
    nonlinear(
        "mse_loss(input, target, reduction='mean', weight=None)", lower=loss(of_elements.mse, _WEIGHTED)
    ),
    nonlinear("l1_loss(input, target, reduction='mean', weight=None)", lower=loss(of_elements.l1, _WEIGHTED)),
    nonlinear(
        "smooth_l1_loss(input, target, reduction='mean', beta=1.0)",
        lower=loss(of_elements.smooth_l1, _TWO, "beta"),
    ),
    nonlinear(
        "huber_loss(input, target, reduction='mean', delta=1.0, weight=None)",
        lower=loss(of_elements.huber, _WEIGHTED, "delta"),
    ),
    nonlinear(
        "binary_cross_entropy(input, target, weight=None, reduction='mean')",
        lower=loss(of_elements.binary_cross_entropy, _WEIGHTED),
    ),
    nonlinear(
        "binary_cross_entropy_with_logits(input, target, weight=None, reduction='mean', pos_weight=None)",
        lower=loss(of_elements.binary_cross_entropy_with_logits, (*_WEIGHTED, "pos_weight")),
    ),
    nonlinear("soft_margin_loss(input, target, reduction='mean')", lower=loss(of_elements.soft_margin, _TWO)),
    nonlinear(
        "kl_div(input, target, reduction='mean', log_target=False)",
        lower=loss(of_elements.kl_div, _TWO, "log_target"),
    ),
    nonlinear(
        "poisson_nll_loss(input, target, log_input=True, full=False, eps=1e-08, reduction='mean')",
        lower=loss(of_elements.poisson_nll, _TWO, "log_input", "full", "eps"),
    ),
    nonlinear(
        "gaussian_nll_loss(input, target, var, full=False, eps=1e-06, reduction='mean')", lower=_gaussian_nll
    ),
    nonlinear(
        "hinge_embedding_loss(input, target, margin=1.0, reduction='mean')",
        lower=loss(of_elements.hinge_embedding, _TWO, "margin"),
    ),
    described("nll_loss(input, target, weight=None)", Kind.LINEAR, fixed=("target", "weight"), fresh=True),
    nonlinear(
        "cross_entropy(input, target, weight=None, ignore_index=-100, reduction='mean', label_smoothing=0.0)",
        lower=_cross_entropy,
    ),
    nonlinear(
        "linear_cross_entropy(input, linear_weight, target, *, linear_bias=None, weight=None,"
        " reduction='mean', ignore_index=None, label_smoothing=0.0, options=None)",
        lower=_linear_cross_entropy,
    ),
    nonlinear(
        "multi_margin_loss(input, target, p=1, margin=1.0, weight=None, reduction='mean')",
        lower=loss(of_classes.multi_margin, _WEIGHTED, "p", "margin"),
    ),
    nonlinear(
        "multilabel_margin_loss(input, target, reduction='mean')",
        lower=loss(of_classes.multilabel_margin, _TWO),
    ),
    nonlinear(
        "multilabel_soft_margin_loss(input, target, weight=None, reduction='mean')",
        lower=loss(of_classes.multilabel_soft_margin, _WEIGHTED),
    ),
    nonlinear(
        "margin_ranking_loss(input1, input2, target, margin=0, reduction='mean')",
        lower=loss(of_vectors.margin_ranking, ("input1", "input2", "target"), "margin"),
    ),
    nonlinear(
        "cosine_embedding_loss(input1, input2, target, margin=0, reduction='mean')",
        lower=loss(of_vectors.cosine_embedding, ("input1", "input2", "target"), "margin"),
    ),
    nonlinear(
        "triplet_margin_loss(anchor, positive, negative, margin=1.0, p=2, eps=1e-06, swap=False,"
        " reduction='mean')",
        lower=loss(
            of_vectors.triplet_margin, ("anchor", "positive", "negative"), "margin", "p", "eps", "swap"
        ),
    ),
    nonlinear(
        "triplet_margin_with_distance_loss(anchor, positive, negative, *, distance_function=None, margin=1.0,"
        " swap=False, reduction='mean')",
        lower=of_vectors.lower_triplet_with_distance,
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {
    nn.MSELoss: _module("mse_loss", ()),
    nn.L1Loss: _module("l1_loss", ()),
    nn.SmoothL1Loss: _module("smooth_l1_loss", ("beta",)),
    nn.HuberLoss: _module("huber_loss", ("delta",)),
    nn.BCELoss: _module("binary_cross_entropy", (), ("weight",)),
    nn.BCEWithLogitsLoss: _module("binary_cross_entropy_with_logits", (), ("weight", "pos_weight")),
    nn.SoftMarginLoss: _module("soft_margin_loss", ()),
    nn.KLDivLoss: _module("kl_div", ("log_target",)),
    nn.PoissonNLLLoss: _module("poisson_nll_loss", ("log_input", "full", "eps")),
    nn.GaussianNLLLoss: _module("gaussian_nll_loss", ("full", "eps")),
    nn.HingeEmbeddingLoss: _module("hinge_embedding_loss", ("margin",)),
    nn.NLLLoss: _module("nll_loss", ("ignore_index",), ("weight",)),
    nn.CrossEntropyLoss: _module("cross_entropy", ("ignore_index", "label_smoothing"), ("weight",)),
    nn.MultiMarginLoss: _module("multi_margin_loss", ("p", "margin"), ("weight",)),
    nn.MultiLabelMarginLoss: _module("multilabel_margin_loss", ()),
    nn.MultiLabelSoftMarginLoss: _module("multilabel_soft_margin_loss", (), ("weight",)),
    nn.MarginRankingLoss: _module("margin_ranking_loss", ("margin",)),
    nn.CosineEmbeddingLoss: _module("cosine_embedding_loss", ("margin",)),
    nn.TripletMarginLoss: _module("triplet_margin_loss", ("margin", "p", "eps", "swap")),
    nn.TripletMarginWithDistanceLoss: _module(
        "triplet_margin_with_distance_loss", ("distance_function", "margin", "swap")
    ),
}
RULES: Mapping[type[nn.Module], Rule] = {CrossEntropy: pulled(cross_entropy_pull, keeps_integers=True)}
