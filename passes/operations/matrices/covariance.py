"""Covariances and correlations, made of a product and a quotient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from passes.operations.contract import Plain, Textbook, Varies, is_number


def lower_covariance(
    varies: Varies, input: Any, correction: Any = 1, fweights: Any = None, aweights: Any = None
) -> Textbook | None:
    """Lower ``torch.cov``, whose weights have to be the same for all inputs."""
    if not is_number(correction) or varies((fweights, aweights)):
        return None
    if fweights is None and aweights is None:
        return Plain(partial(_unweighted, correction)), (input,)
    given = [each for each in (fweights, aweights) if each is not None]
    weigh = _weighted_twice if len(given) > 1 else _weighted_by_number if aweights is None else _weighted
    return Plain(partial(weigh, correction)), (input, *given)


def _unweighted(correction: float, x: Any) -> Any:
    return _scattered(x, 1.0, x.shape[-1], x.shape[-1] - correction)


def _weighted_by_number(correction: float, x: Any, weight: Any) -> Any:
    return _scattered(x, weight, weight.sum(), weight.sum() - correction)


def _weighted(correction: float, x: Any, weight: Any) -> Any:
    total = weight.sum()
    return _scattered(x, weight, total, total - correction * (weight * weight).sum() / total)


def _weighted_twice(correction: float, x: Any, number: Any, weight: Any) -> Any:
    both = number * weight
    total = both.sum()
    return _scattered(x, both, total, total - correction * (both * weight).sum() / total)


def _scattered(x: Any, weight: Any, total: Any, divisor: Any) -> Any:
    rows = torch.atleast_2d(x)  # type: ignore[no-untyped-call]
    centred = rows - (rows * weight).sum(-1, keepdim=True) / total
    return (torch.matmul(centred * weight, centred.mT) / divisor).squeeze()


def lower_correlation(varies: Varies, input: Any) -> Textbook:
    """Lower ``torch.corrcoef``."""
    return Plain(_correlation), (input,)


def _correlation(x: Any) -> Any:
    covariance = torch.atleast_2d(torch.cov(x))  # type: ignore[no-untyped-call]
    length = torch.sqrt(torch.diagonal(covariance))
    return torch.clamp(covariance / length / length.unsqueeze(-1), -1, 1).squeeze()
