"""Rules of softmax, log_softmax and logsumexp.

With p the probabilities of the sample and p0 those of the reference, take the logarithmic means

    L_i  =  (p_i - p0_i) / (log p_i - log p0_i),        w_i  =  L_i / sum of L.

Both probabilities sum to 1 and ``log p_i - log p0_i = Δx_i - Δlse``; summing ``L_i`` times that gives 0,
so ``Δlse = sum of w_i Δx_i`` exactly. These weights are those of the ideal log-change index number (Sato
1976, Vartia 1976). They lie between 0 and 1, sum to 1, do not change when all logits of a row are
shifted, and become the softmax, hence the gradient, where sample and reference meet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.running import running_multipliers
from passes.operations.softmax.atoms import (
    LogSoftmaxAtom,
    LogSumExp,
    RunningLogSumExp,
    SoftmaxAtom,
    dim_from_end,
)


def softmax_pull(atom: SoftmaxAtom, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers through ``y_j = exp(x_j - lse)``: ``L_j`` is the slope of the exponential's chord.

    Args:
        atom: the softmax.
        x: the logits of the samples, (n or 1, *shape).
        x0: those of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *shape).

    Example:
        >>> x = torch.tensor([[[0.0, 1.0]]])
        >>> d = torch.tensor([[[[1.0, 0.0]]]])
        >>> softmax_pull(SoftmaxAtom(-1), (x,), (-x,), x, x, d)
        (tensor([[[[ 0.2311, -0.2311]]]]),)

    """
    dims = (dim_from_end(atom.dim, x[0].dim() - 1),)
    mean, share = log_means(x[0], x0[0], dims)
    through = d * mean
    return (_as(x[0], through - share * through.sum(dims, keepdim=True)),)


def log_softmax_pull(
    atom: LogSoftmaxAtom, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers through ``y_j = x_j - lse``; arguments as for :func:`softmax_pull`.

    Example:
        >>> x, d = torch.zeros(1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
        >>> log_softmax_pull(LogSoftmaxAtom(-1), (x,), (x,), x, x, d)
        (tensor([[[[ 0.5000, -0.5000]]]]),)

    """
    dims = (dim_from_end(atom.dim, x[0].dim() - 1),)
    _, share = log_means(x[0], x0[0], dims)
    return (_as(x[0], d - share * d.sum(dims, keepdim=True)),)


def logsumexp_pull(atom: LogSumExp, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers, (K, n, *shape without the summed dimensions), to the logits.

    Example:
        >>> x, d = torch.zeros(1, 1, 2), torch.ones(1, 1, 1)
        >>> logsumexp_pull(LogSumExp((1,)), (x,), (x,), d[0], d[0], d)
        (tensor([[[[0.5000, 0.5000]]]]),)

    """
    rank = x[0].dim() - 1
    dims = tuple(sorted(dim_from_end(dim, rank) for dim in atom.dim))
    if not atom.keepdim:
        for dim in dims:
            d = d.unsqueeze(dim + rank + 2)
    _, share = log_means(x[0], x0[0], dims)
    return (_as(x[0], d * share),)


def running_pull(
    atom: RunningLogSumExp, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers, (K, n, *shape), to the logits: each result is the logsumexp of all up to it.

    Example:
        >>> x, d = torch.zeros(1, 1, 2), torch.ones(1, 1, 1, 2)
        >>> running_pull(RunningLogSumExp(1), (x,), (x,), x, x, d)
        (tensor([[[[1.5000, 0.5000]]]]),)

    """

    def share(upto: Tensor, upto0: Tensor) -> Tensor:
        return log_means(upto, upto0, (-1,))[1]

    dim = dim_from_end(atom.dim, x[0].dim() - 1)
    return (_as(x[0], running_multipliers(share, x[0], x0[0], d, dim)),)


def log_means(x: Tensor, x0: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the logarithmic mean of both probabilities of each logit, and its share in their sum.

    Logits of minus infinity get 0. Computed from logarithms, in float32 at least, so that nothing
    overflows and nothing is lost where the probabilities are close.

    Example:
        >>> log_means(torch.zeros(1, 2), torch.zeros(1, 2), (-1,))
        (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))

    """
    a, b = _log_probabilities(x, dims), _log_probabilities(x0, dims)
    higher = torch.maximum(a, b)
    # The smallest normal number changes no quotient and leaves nothing to divide by zero.
    gap = (a - b).abs().add(torch.finfo(a.dtype).tiny)
    mean = higher.exp() * (-torch.expm1(-gap) / gap)
    mean = torch.where(gap.isfinite(), mean, 0)
    total = mean.sum(dims, keepdim=True)
    return mean, mean / torch.where(total > 0, total, 1)


def _log_probabilities(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.amax(dims, keepdim=True)
    return centred - centred.logsumexp(dims, keepdim=True)


def _as(x: Tensor, multipliers: Tensor) -> Tensor:
    return multipliers.to(x.dtype)
