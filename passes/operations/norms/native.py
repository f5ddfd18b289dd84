"""Norms as aten has them, which return statistics, too, and those by statistics of batches.

Statistics of a batch mix its rows. In a graph such a norm stays, and is reported; code that runs may hold the
batch of a single row, which nobody knows. That rows influence each other is seen where a model is explained.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.operations.contract import Lowering, Plain, Textbook, Varies, is_number


def lower_native_layer_norm(
    varies: Varies, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Textbook | None:
    """Lower ``torch.native_layer_norm``."""
    if not is_number(eps) or not isinstance(normalized_shape, list | tuple):
        return None
    rank = len(normalized_shape)

    def norms(x: Any, weight: Any, bias: Any) -> Any:
        return F.layer_norm(x, x.shape[-rank:], weight, bias, eps), *_statistics(x, rank, eps)

    return Plain(norms), (input, weight, bias)


def lower_native_group_norm(
    varies: Varies, input: Any, weight: Any, bias: Any, N: Any, C: Any, HxW: Any, group: Any, eps: Any
) -> Textbook | None:
    """Lower ``torch.native_group_norm``."""
    if not is_number(eps) or type(group) is not int:
        return None

    def norms(x: Any, weight: Any, bias: Any) -> Any:
        groups = torch.unflatten(torch.flatten(x, 1), 1, (group, -1))
        statistics = (each.squeeze(-1) for each in _statistics(groups, 1, eps))
        return F.group_norm(x, group, weight, bias, eps), *statistics

    return Plain(norms), (input, weight, bias)


def _statistics(x: Any, rank: int, eps: float) -> tuple[Any, Any]:
    dims = tuple(range(-rank, 0))
    variance = torch.var(x, dims, correction=0, keepdim=True)
    return x.mean(dims, keepdim=True), torch.rsqrt(variance + eps)


def lower_batch_norm(
    varies: Varies,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Textbook | None:
    """Lower ``F.batch_norm``."""
    if not is_number(eps) or not isinstance(training, bool):
        return None
    if not training:
        return Plain(partial(_by_earlier, eps)), (input, running_mean, running_var, weight, bias)
    return (Plain(partial(_by_batch, eps)), (input, weight, bias)) if isinstance(input, Tensor) else None


def lower_with_statistics(*nothing: torch.dtype, training: bool | None = None) -> Lowering:
    """Return what lowers a norm of aten's, which returns the statistics of the batch, or nothing for them.

    Args:
        nothing: the types of further results, which are empty.
        training: whether it takes statistics of the batch, unless it is told.

    """
    own = training

    def lower(
        varies: Varies,
        input: Any,
        weight: Any,
        bias: Any,
        running_mean: Any = None,
        running_var: Any = None,
        training: Any = None,
        momentum: Any = None,
        eps: Any = None,
    ) -> Textbook | None:
        by_batch = training if own is None else own
        textbook = lower_batch_norm(
            varies, input, running_mean, running_var, weight, bias, by_batch, momentum, eps
        )
        if textbook is None:
            return None
        module, operands = textbook

        def with_statistics(x: Any, *others: Any) -> Any:
            lines = torch.flatten(torch.transpose(x, 0, 1), 1)[: None if by_batch else 0]
            statistics = (each.squeeze(-1) for each in _statistics(lines, 1, eps))
            empty = (torch.empty(0, dtype=each) for each in nothing)
            return module(x, *others), *statistics, *empty

        return Plain(with_statistics), operands

    return lower


def _by_earlier(eps: float, x: Any, mean: Any, variance: Any, weight: Any, bias: Any) -> Any:
    last = torch.transpose(torch.unsqueeze(x, -1), 1, -1)
    return _scaled((last - mean) / torch.sqrt(variance + eps), weight, bias)


def _by_batch(eps: float, x: Any, weight: Any, bias: Any) -> Any:
    channels = torch.transpose(x, 0, 1)
    lines = torch.flatten(channels, 1)
    standard = F.layer_norm(lines, lines.shape[-1:], eps=eps).reshape(channels.shape)
    last = torch.transpose(torch.unsqueeze(torch.transpose(standard, 0, 1), -1), 1, -1)
    return _scaled(last, weight, bias)


def _scaled(last: Any, weight: Any, bias: Any) -> Any:
    """Apply weights to channels, which are last, and bring them back to dimension 1."""
    scaled = last if weight is None else last * weight
    return torch.squeeze(torch.transpose(scaled if bias is None else scaled + bias, 1, -1), -1)


def lower_instance_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, use_input_stats: Any, eps: Any
) -> Textbook | None:
    """Lower ``F.instance_norm`` that has statistics of earlier batches.

    What it is to note of this one is not: what is explained leaves a model as it is.
    """
    if not is_number(eps) or not isinstance(use_input_stats, bool):
        return None
    if not use_input_stats:
        return Plain(partial(_by_earlier, eps)), (input, running_mean, running_var, weight, bias)
    if not isinstance(input, Tensor):
        return None
    return Plain(partial(F.instance_norm, eps=eps)), (input, None, None, weight, bias)
