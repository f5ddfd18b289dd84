"""Calls and modules of normalisations, variances and lengths of vectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.operations.contract import (
    Build,
    Lowering,
    Plain,
    Rule,
    Textbook,
    Varies,
    is_number,
    known_dims,
    pulled,
)
from passes.operations.norms.lengths import build_power_pool, lower_dist, lower_pdist, lower_power_pool
from passes.operations.norms.native import (
    lower_batch_norm,
    lower_instance_norm,
    lower_native_group_norm,
    lower_native_layer_norm,
    lower_with_statistics,
)
from passes.operations.norms.rule import normalize_pull, standardize_pull, variance_pull, vector_norm_pull
from passes.operations.norms.similarity import CosineSimilarityAtoms, PairwiseDistanceAtoms, distance_of_order
from passes.operations.norms.standardize import (
    GroupNormAtoms,
    InstanceNorm1dAtoms,
    InstanceNorm2dAtoms,
    InstanceNorm3dAtoms,
    InstanceNormAtoms,
    LayerNormAtoms,
    LocalResponseNormAtoms,
    RMSNormAtoms,
    Scaled,
    Standardize,
)
from passes.operations.norms.variance import Variance, VarianceAndMean
from passes.operations.norms.vector_norms import (
    LargestAbsolute,
    Normalize,
    VectorNorm,
    norm_of_order,
    normalized,
)
from passes.operations.operation import ROWS, Kind, Operation, described, nonlinear
from passes.operations.whole import is_whole, lower_whole
from passes.stand_in import StandIn, put_on_face


def _with_weights(module: Scaled, input: Any, weight: Any, bias: Any) -> Textbook:
    if weight is None and bias is None and not module.groups:
        return module.standardize, (input,)
    return module, (input, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


def _over(shape: Any) -> tuple[int, ...] | int | None:
    """Tell the dimensions from a ``normalized_shape``, which may be read off a tensor."""
    if isinstance(shape, list | tuple):
        known = all(isinstance(each, int) for each in shape)
        return tuple(shape) if known else -len(shape)
    if isinstance(shape, fx.Node) and shape.target is operator.getitem:
        _, part = shape.args
        if isinstance(part, slice) and isinstance(part.start, int) and part.stop is part.step is None:
            first: int = part.start
            return first
    return None


def _layer_norm(
    varies: Varies, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Textbook | None:
    over = _over(normalized_shape)
    if over is None or not is_number(eps):
        return None
    return _with_weights(Scaled(Standardize(over, eps)), input, weight, bias)


def _rms_norm(
    varies: Varies, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Textbook | None:
    over = _over(normalized_shape)
    if over is None or not (eps is None or is_number(eps)):
        return None
    return _with_weights(Scaled(Standardize(over, eps, centred=False)), input, weight, None)


def _group_norm(
    varies: Varies, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Textbook | None:
    if not isinstance(num_groups, int) or not is_number(eps):
        return None
    return _with_weights(Scaled(Standardize(-1, eps), num_groups, channels=True), input, weight, bias)


def _instance_norm(
    varies: Varies,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: Any = True,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Textbook | None:
    if running_mean is not None or use_input_stats is not True or not is_number(eps):
        return lower_instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, eps)
    return _with_weights(Scaled(Standardize(2, eps), channels=True), input, weight, bias)


def _local_response_norm(
    varies: Varies, input: Any, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0
) -> Textbook | None:
    if not all(map(is_number, (size, alpha, beta, k))):
        return None
    return LocalResponseNormAtoms(size, alpha, beta, k), (input,)


_VARIANCES: Mapping[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): torch.var,
    (True, False): torch.std,
    (False, True): torch.var_mean,
    (True, True): torch.std_mean,
}


def _variance(*, root: bool = False, mean: bool = False) -> Lowering:
    def lower(
        varies: Varies,
        input: Any,
        dim: Any = None,
        unbiased: Any = True,
        keepdim: Any = False,
        correction: Any = None,
        dim_or_unbiased: Any = None,
    ) -> Textbook | None:
        if isinstance(dim_or_unbiased, bool):
            unbiased = dim_or_unbiased
        elif dim_or_unbiased is not None:
            dim = dim_or_unbiased
        taken = int(bool(unbiased)) if correction is None else correction
        if not is_number(taken) or not isinstance(keepdim, bool):
            return None
        if is_whole(dim):
            options = {"dim": -1, "correction": taken}
            return lower_whole(partial(_VARIANCES[root, mean], **options), input, keepdim=keepdim)
        dims = known_dims(dim)
        if dims is None:
            return None
        if mean:
            return VarianceAndMean(dims, taken, keepdim, root), (input,)
        return Variance(dims, taken, keepdim, root), (input,)

    return lower


def _norm(
    varies: Varies, input: Any, p: Any = "fro", dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> Textbook | None:
    known = isinstance(keepdim, bool) and (dtype is None or isinstance(dtype, torch.dtype))
    if p == "nuc" and known and dtype is None:
        return _nuclear_norm(input, dim, keepdim)
    order = 2 if p in ("fro", None) else p
    if not known or not is_number(order):
        return None
    if is_whole(dim):
        of_line = partial(torch.linalg.vector_norm, ord=order, dim=-1, dtype=dtype)
        return lower_whole(of_line, input, keepdim=keepdim)
    dims = known_dims(dim)
    if dims is None:
        return None
    if order in (1, 2):
        return VectorNorm(int(order), dims, keepdim, dtype), (input,)
    if dtype is not None:
        return None
    if order == math.inf:
        return LargestAbsolute(dims, keepdim), (input,)
    return Plain(partial(norm_of_order, float(order), dims, keepdim)), (input,)


def _nuclear_norm(input: Any, dim: Any, keepdim: bool) -> Textbook | None:
    dims = (-2, -1) if is_whole(dim) else known_dims(dim)
    if dims is None or len(dims) != 2:
        return None
    return Plain(partial(torch.linalg.matrix_norm, ord="nuc", dim=dims, keepdim=keepdim)), (input,)


def _vector_norm(
    varies: Varies, x: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> Textbook | None:
    return _norm(varies, x, ord, dim, keepdim, dtype)


def _linalg_norm(
    varies: Varies, input: Any, ord: Any = None, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> Textbook | None:
    if ord is not None and is_whole(dim):
        # Of a vector or of a matrix, as its shape says.
        if not isinstance(input, Tensor):
            return None
        dim = tuple(range(input.dim()))
    if isinstance(dim, list | tuple) and len(dim) > 1 and ord not in (None, "fro"):
        given = {"dim": tuple(dim), "keepdim": keepdim, "dtype": dtype}
        return Plain(partial(torch.linalg.matrix_norm, ord=ord, **given)), (input,)
    return _norm(varies, input, ord, dim, keepdim, dtype)


def _normalize(varies: Varies, input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12) -> Textbook | None:
    dims = known_dims(dim)
    if dims is None or not is_number(p) or not is_number(eps):
        return None
    if p not in (1, 2):
        return Plain(partial(normalized, p, dims, eps)), (input,)
    return Normalize(int(p), dims, eps), (input,)


def _cosine(varies: Varies, x1: Any, x2: Any, dim: Any = 1, eps: Any = 1e-8) -> Textbook | None:
    if type(dim) is not int or not is_number(eps):
        return None
    return CosineSimilarityAtoms(dim, eps), (x1, x2)


def _distance(
    varies: Varies, x1: Any, x2: Any, p: Any = 2.0, eps: Any = 1e-6, keepdim: Any = False
) -> Textbook | None:
    if not is_number(p) or not is_number(eps) or not isinstance(keepdim, bool):
        return None
    if p not in (1, 2):
        return Plain(partial(distance_of_order, p, eps, keepdim)), (x1, x2)
    return PairwiseDistanceAtoms(int(p), eps, keepdim), (x1, x2)


def _with_atom(cls: type[StandIn], norm: nn.Module, standardize: Standardize) -> nn.Module:
    stand_in = put_on_face(cls, norm, set(), "")
    stand_in.add_module("standardize", standardize)
    return stand_in


def _layer_module(norm: nn.LayerNorm) -> nn.Module:
    return _with_atom(LayerNormAtoms, norm, Standardize(tuple(norm.normalized_shape), norm.eps))


def _rms_module(norm: nn.RMSNorm) -> nn.Module:
    return _with_atom(RMSNormAtoms, norm, Standardize(tuple(norm.normalized_shape), norm.eps, centred=False))


def _group_module(norm: nn.GroupNorm) -> nn.Module:
    return _with_atom(GroupNormAtoms, norm, Standardize(-1, norm.eps))


def _local_response_module(norm: nn.LocalResponseNorm) -> nn.Module:
    return LocalResponseNormAtoms(norm.size, norm.alpha, norm.beta, norm.k)


def _instance_module(cls: type[InstanceNormAtoms]) -> Build:
    def build(norm: nn.InstanceNorm1d) -> nn.Module | None:
        if norm.track_running_stats:
            return None
        return _with_atom(cls, norm, Standardize(-cls.space, norm.eps))

    return build


def _cosine_module(module: nn.CosineSimilarity) -> nn.Module:
    return CosineSimilarityAtoms(module.dim, module.eps)


def _distance_module(module: nn.PairwiseDistance) -> nn.Module | None:
    if module.norm not in (1, 2):
        return None
    return PairwiseDistanceAtoms(int(module.norm), module.eps, module.keepdim)


_OF_VARIANCE = "(input, dim=None, unbiased=True, keepdim=False, *, correction=None)"

CALLS: tuple[Operation, ...] = (
    nonlinear("layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05)", lower=_layer_norm),
    nonlinear("rms_norm(input, normalized_shape, weight=None, eps=None)", lower=_rms_norm),
    nonlinear("group_norm(input, num_groups, weight=None, bias=None, eps=1e-05)", lower=_group_norm),
    nonlinear(
        "instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None,"
        " use_input_stats=True, momentum=0.1, eps=1e-05)",
        lower=_instance_norm,
        builtin="input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,"
        " cudnn_enabled",
    ),
    nonlinear("native_layer_norm(input, normalized_shape, weight, bias, eps)", lower=lower_native_layer_norm),
    nonlinear("native_group_norm(input, weight, bias, N, C, HxW, group, eps)", lower=lower_native_group_norm),
    described(
        "batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1,"
        " eps=1e-05)",
        Kind.LINEAR,
        fixed=("running_mean", "running_var", "weight"),
        builtin="input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled",
        fresh=True,
        unless={"training": ROWS},
        lower=lower_batch_norm,
    ),
    *(
        nonlinear(
            f"{name}(input, weight, bias, running_mean, running_var, training, momentum, eps)",
            lower=lower_with_statistics(),
        )
        for name in ("native_batch_norm", "_native_batch_norm_legit")
    ),
    nonlinear(
        "_batch_norm_with_update(input, weight, bias, running_mean, running_var, momentum, eps)",
        lower=lower_with_statistics(torch.uint8, training=True),
    ),
    nonlinear("local_response_norm(input, size, alpha=0.0001, beta=0.75, k=1.0)", lower=_local_response_norm),
    *(
        nonlinear(
            f"{name}{_OF_VARIANCE}",
            lower=_variance(root=name.startswith("std"), mean=name.endswith("mean")),
            # Torch looks whether it is true or false; what aten calls a dimension is one.
            method="input, dim_or_unbiased, unbiased, keepdim",
            builtin="input, dim_or_unbiased, unbiased, keepdim",
        )
        for name in ("var", "std", "var_mean", "std_mean")
    ),
    nonlinear("norm(input, p='fro', dim=None, keepdim=False, dtype=None)", lower=_norm),
    nonlinear("linalg.norm(input, ord=None, dim=None, keepdim=False, *, dtype=None)", lower=_linalg_norm),
    nonlinear("linalg.vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None)", lower=_vector_norm),
    nonlinear("pdist(input, p=2.0)", lower=lower_pdist),
    nonlinear("dist(input, other, p=2.0)", lower=lower_dist),
    *(
        nonlinear(
            f"lp_pool{space}d(input, norm_type, kernel_size, stride=None, ceil_mode=False)",
            lower=lower_power_pool(space),
        )
        for space in (1, 2, 3)
    ),
    nonlinear("normalize(input, p=2.0, dim=1, eps=1e-12)", lower=_normalize),
    nonlinear("cosine_similarity(x1, x2, dim=1, eps=1e-08)", lower=_cosine),
    nonlinear("pairwise_distance(x1, x2, p=2.0, eps=1e-06, keepdim=False)", lower=_distance),
)
MODULES: Mapping[type[nn.Module], Build] = {
    nn.LayerNorm: _layer_module,
    nn.RMSNorm: _rms_module,
    nn.GroupNorm: _group_module,
    nn.LocalResponseNorm: _local_response_module,
    nn.InstanceNorm1d: _instance_module(InstanceNorm1dAtoms),
    nn.InstanceNorm2d: _instance_module(InstanceNorm2dAtoms),
    nn.InstanceNorm3d: _instance_module(InstanceNorm3dAtoms),
    nn.LPPool1d: build_power_pool(1),
    nn.LPPool2d: build_power_pool(2),
    nn.LPPool3d: build_power_pool(3),
    nn.CosineSimilarity: _cosine_module,
    nn.PairwiseDistance: _distance_module,
}
RULES: Mapping[type[nn.Module], Rule] = {
    Standardize: pulled(standardize_pull),
    Variance: pulled(variance_pull),
    VectorNorm: pulled(vector_norm_pull),
    Normalize: pulled(normalize_pull),
}
