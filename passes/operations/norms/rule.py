"""Rules of normalisations, variances and vector norms.

A quotient ``y = a / b`` is a product the other way round, ``a = y b``. Splitting that product by the
means of its factors, ``Δa = mean(b) Δy + mean(y) Δb``, gives

    Δy  =  (Δa - mean(y) Δb) / mean(b)

exactly. Unlike the split of ``a`` times ``1 / b`` it divides by nothing small unless both divisors are, so
that a constant row, whose variance is 0, costs no digits when the other row is an ordinary one.

A root is treated alike: ``b² - b0² = (b + b0)(b - b0)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.norms.standardize import Standardize
from passes.operations.norms.variance import Variance
from passes.operations.norms.vector_norms import Normalize, VectorNorm
from passes.operations.softmax.atoms import dim_from_end


def standardize_pull(
    atom: Standardize, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers through ``c / s``, ``c`` the deviations from the mean, ``s² = mean(c²) + eps``.

    Args:
        atom: the standardisation.
        x: operands of the samples, (n or 1, *shape).
        x0: operands of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *shape).

    Example:
        >>> x, d = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> standardize_pull(Standardize((2,), eps=0.0, centred=False), (x,), (0 * x,), x, x, d)
        (tensor([[[[ 0.8497, -0.1342]]]]),)

    """
    dims = atom.dims(x[0].dim() - 1)
    eps = torch.finfo(x[0].dtype).eps if atom.eps is None else atom.eps
    c, c0 = (_centred(_wide(each[0]), dims) if atom.centred else _wide(each[0]) for each in (x, x0))
    s, s0 = (each.square().mean(dims, keepdim=True).add(eps).sqrt() for each in (c, c0))
    slope = (c + c0) / (_size(c, dims) * _divisor(s + s0))
    pulled = _through_quotient(d, (c, c0), (s, s0), slope, dims)
    return ((_centred(pulled, dims) if atom.centred else pulled).to(x[0].dtype),)


def variance_pull(atom: Variance, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers, (K, n, *shape without the dimensions), through a variance or its root.

    Example:
        >>> x, d = torch.tensor([[[1.0, 3.0]]]), torch.ones(1, 1, 1)
        >>> variance_pull(Variance((-1,), correction=0), (x,), (0 * x,), d[0], d[0], d)
        (tensor([[[[-0.5000,  0.5000]]]]),)

    """
    dims = tuple(sorted(dim_from_end(dim, x[0].dim() - 1) for dim in atom.dim))
    c, c0 = (_centred(_wide(each[0]), dims) for each in (x, x0))
    if not atom.keepdim:
        d, y, y0 = (_unsqueezed(each, dims, c.dim() - 1) for each in (d, y, y0))
    slope = (c + c0) / max(_size(c, dims) - atom.correction, 0)
    if atom.root:
        slope = slope / _divisor(y + y0)
    return ((d * slope).to(x[0].dtype),)


def vector_norm_pull(
    atom: VectorNorm, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers, (K, n, *shape without the dimensions), through a norm.

    Example:
        >>> x, d = torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1, 1)
        >>> vector_norm_pull(VectorNorm(2, (-1,)), (x,), (0 * x,), 5 * d[0], 0 * d[0], d)
        (tensor([[[[0.6000, 0.8000]]]]),)

    """
    dims = tuple(sorted(dim_from_end(dim, x[0].dim() - 1) for dim in atom.dim))
    if not atom.keepdim:
        d, y, y0 = (_unsqueezed(each, dims, x[0].dim() - 1) for each in (d, y, y0))
    return ((d * _norm_slope(atom.order, x[0].to(y.dtype), x0[0].to(y.dtype), y, y0)).to(x[0].dtype),)


def normalize_pull(atom: Normalize, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers, (K, n, *shape), through a vector over its norm.

    Example:
        >>> x, d = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> normalize_pull(Normalize(2, (-1,)), (x,), (0 * x,), x, x, d)
        (tensor([[[[ 0.3280, -0.0960]]]]),)

    """
    dims = tuple(dim_from_end(dim, x[0].dim() - 1) for dim in atom.dim)
    a, b = _wide(x[0]), _wide(x0[0])
    s, s0 = (torch.linalg.vector_norm(each, atom.order, dims, keepdim=True) for each in (a, b))
    t, t0 = (each.clamp_min(atom.eps) for each in (s, s0))
    # The divisor follows the norm above eps, and stands still below.
    follows = torch.where(s == s0, (s >= atom.eps).to(s.dtype), (t - t0) / _divisor(s - s0))
    slope = follows * _norm_slope(atom.order, a, b, s, s0)
    return (_through_quotient(d, (a, b), (t, t0), slope, dims).to(x[0].dtype),)


def _through_quotient(
    d: Tensor,
    numerators: tuple[Tensor, Tensor],
    divisors: tuple[Tensor, Tensor],
    slope: Tensor,
    dims: tuple[int, ...],
) -> Tensor:
    """Take multipliers of a quotient to its numerator, on which its divisor depends by ``slope``."""
    (a, a0), (b, b0) = numerators, divisors
    quotients = a / _divisor(b) + a0 / _divisor(b0)
    return (d - slope * (d * quotients / 2).sum(dims, keepdim=True)) / _divisor((b + b0) / 2)


def _norm_slope(order: int, x: Tensor, x0: Tensor, s: Tensor, s0: Tensor) -> Tensor:
    """Return what a norm rises by per unit of each number: no more than 1, and 0 where all is 0."""
    return (x + x0) / _divisor(x.abs() + x0.abs() if order == 1 else s + s0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _centred(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x - x.mean(dims, keepdim=True)


def _size(x: Tensor, dims: tuple[int, ...]) -> int:
    return torch.Size(x.shape[dim] for dim in dims).numel()


def _unsqueezed(x: Tensor, dims: tuple[int, ...], rank: int) -> Tensor:
    """Put back dimensions, negative and in order, that a reduction of ``rank`` dimensions took."""
    lead = x.dim() - (rank - len(dims))
    for dim in dims:
        x = x.unsqueeze(dim + rank + lead)
    return x


def _divisor(x: Tensor) -> Tensor:
    """Let a quotient whose divisor is 0 be its numerator, which is 0, too."""
    return torch.where(x == 0, 1, x)
