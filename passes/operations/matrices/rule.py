"""Rules of functions of matrices.

An inverse and a Cholesky factor are given by an equation of the second degree, whose difference between
two ends is linear in what is sought: that is their rule, exact at any distance. All others take the mean of
the gradient on the straight line between both ends (Aumann & Shapley 1974), at sixteen Gauss-Legendre nodes:
for a determinant of up to 32 rows that is exact, for what is smooth on the line it is so to rounding. What
the nodes miss, on a line along which the function jumps or is singular, is given to the elements in
proportion to the squares of their changes: the smallest change of the multipliers that makes them add up.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.matrices.atoms import Cholesky, Inverse, MatrixFunction, Solve


def inverse_pull(atom: Inverse, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers through ``inv(a) - inv(b) = -inv(a) (a - b) inv(b)``, the mean of both orders.

    Args:
        atom: not used.
        x: the matrices of the samples, (n or 1, *, m, m).
        x0: those of the references, likewise.
        y: their inverses.
        y0: likewise.
        d: (K, n, *, m, m).

    Example:
        >>> a = torch.full((1, 1, 1), 2.0)
        >>> inverse_pull(Inverse(), (a,), (a / 2,), 1 / a, 2 / a, torch.ones(1, 1, 1, 1))
        (tensor([[[[-0.5000]]]]),)

    """
    return (-(y.mT @ d @ y0.mT + y0.mT @ d @ y.mT) / 2,)


def solve_pull(atom: Solve, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers through ``a (s - t) = (p - q) - (a - b) t``, the mean of that and its other order.

    That is the Shapley value of a game in which the matrix and the right side are the players.

    Args:
        atom: the equations.
        x: matrices and right sides of the samples.
        x0: those of the references.
        y: the solutions of the samples.
        y0: of the references.
        d: (K, n, *output shape).

    Example:
        >>> a, p = torch.full((1, 1, 1), 2.0), torch.full((1, 1), 6.0)
        >>> solve_pull(Solve(), (a, p), (a, p / 3), p / 2, p / 6, torch.ones(1, 1, 1))
        (tensor([[[[-1.]]]]), tensor([[[0.5000]]]))

    """
    (a, p), (b, _) = x, x0
    vector = p.dim() == 2 or (a.dim() - 1 == p.dim() and a.shape[1:-1] == p.shape[1:])
    if vector:
        y, y0, d = (each.unsqueeze(-1) for each in (y, y0, d))
    if not atom.left:
        a, b, y, y0, d = (each.mT for each in (a, b, y, y0, d))
    now, then = torch.linalg.inv(a).mT @ d, torch.linalg.inv(b).mT @ d
    of_matrix, of_right = -(now @ y0.mT + then @ y.mT) / 2, (now + then) / 2
    if not atom.left:
        of_matrix, of_right = of_matrix.mT, of_right.mT
    return of_matrix, of_right.squeeze(-1) if vector else of_right


def cholesky_pull(atom: Cholesky, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers through ``a - b = m (l - k)' + (l - k) m'``, where m is the mean of both factors.

    Arguments as for :func:`inverse_pull`. The upper half of the matrix, which torch does not read, gets
    nothing.

    Example:
        >>> a = torch.full((1, 1, 1), 9.0)
        >>> cholesky_pull(Cholesky(), (a,), (a * 0 + 1,), a / 3, a * 0 + 1, torch.ones(1, 1, 1, 1))
        (tensor([[[[0.2500]]]]),)

    """
    mean = ((y + y0) / 2).expand(d.shape[1:])
    inner = (mean.mT @ d).tril()
    inner = inner - inner.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
    inner = torch.linalg.solve_triangular(mean.mT.expand_as(inner), inner, upper=True)
    outer = torch.linalg.solve_triangular(mean.mT.expand_as(inner), inner.mT, upper=True)
    return ((outer + outer.mT).tril() - outer.diagonal(dim1=-2, dim2=-1).diag_embed(),)


@functools.cache
def _nodes(count: int = 16) -> tuple[Tensor, Tensor]:
    """Return places between 0 and 1, and weights: exact for polynomials of degree 2 count - 1."""
    k = torch.arange(1, count, dtype=torch.float64)
    beside = (k / (4 * k * k - 1).sqrt()).diag(1)
    # Golub & Welsch (1969).
    places, vectors = torch.linalg.eigh(beside + beside.mT)
    return (places + 1) / 2, vectors[0] ** 2


def along_line_pull(
    atom: MatrixFunction, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers through the mean of the gradient on the line between reference and sample.

    Args:
        atom: the function.
        x: the operands of the samples, (n or 1, *operand shape).
        x0: those of the references, likewise.
        y: what the atom made of the samples.
        y0: of the references.
        d: (K, n, *output shape).

    Example:
        >>> a, b = 2 * torch.eye(2)[None], torch.eye(2)[None]
        >>> y, y0 = torch.linalg.det(a), torch.linalg.det(b)
        >>> (m,) = along_line_pull(MatrixFunction("linalg.det"), (a,), (b,), y, y0, torch.ones(1, 1))
        >>> (m * (a - b)).sum().round(decimals=4)
        tensor(3.)

    """
    if not d.numel():
        return tuple(each.new_zeros(*d.shape[:2], *each.shape[1:]) for each in x)
    count = d.shape[1]
    cores = _cores(atom, x)
    batch = torch.broadcast_shapes(
        *(each.shape[1 : each.dim() - core] for each, core in zip(x, cores, strict=True))
    )  # type: ignore[no-untyped-call]
    ends = [
        tuple(_wide(each, count, batch, core) for each, core in zip(side, cores, strict=True))
        for side in (x, x0)
    ]
    changes = [a - b if a.is_floating_point() else torch.zeros_like(a) for a, b in zip(*ends, strict=True)]
    places, weights = _nodes()
    means = [torch.zeros(len(d), *each.shape, dtype=changes[0].dtype, device=d.device) for each in changes]
    moving = [k for k, each in enumerate(changes) if each.is_floating_point()]
    for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
        points = [
            (b + place * change).detach().requires_grad_() if k in moving else b
            for k, (b, change) in enumerate(zip(ends[1], changes, strict=True))
        ]
        with torch.enable_grad():
            values = _each(atom, points, len(batch))
        for k, own in enumerate(d if values.requires_grad else ()):
            found = torch.autograd.grad(
                values,
                [points[each] for each in moving],
                own.reshape(values.shape),
                retain_graph=True,
                allow_unused=True,
            )
            for each, gradient in zip(moving, found, strict=True):
                if gradient is not None:
                    means[each][k] += weight * gradient
    _share_rest(means, changes, d, y, y0, batch)
    return tuple(means)


def _cores(atom: MatrixFunction, operands: Operands) -> list[int]:
    """Return how many dimensions of each operand belong to one matrix."""
    if atom.core is None:
        return [each.dim() - 1 for each in operands]
    if atom.others is None:
        return [atom.core + each.dim() - operands[0].dim() for each in operands]
    return [atom.core, *atom.others]


def _wide(operand: Tensor, count: int, batch: tuple[int, ...], core: int) -> Tensor:
    own = operand.shape[operand.dim() - core :]
    lead = operand.shape[1 : operand.dim() - core]
    missing = (1,) * (len(batch) - len(lead))
    return operand.reshape(len(operand), *missing, *lead, *own).expand(count, *batch, *own)


def _each(atom: MatrixFunction, points: list[Tensor], batch: int) -> Tensor:
    """Call an atom on all points at once, or on each if it knows of no batch."""
    if atom.core is not None:
        return atom(*points)  # type: ignore[no-any-return]
    assert batch == 0
    return torch.stack([atom(*each) for each in zip(*points, strict=True)])


def _share_rest(
    means: list[Tensor], changes: list[Tensor], d: Tensor, y: Tensor, y0: Tensor, batch: tuple[int, ...]
) -> None:
    """Add to the multipliers what is missing, the least of it."""
    lead = 2 + len(batch)
    expected = (d.conj() * (y - y0)).real.reshape(*d.shape[:2], *batch, -1).sum(-1)
    given = sum((m * c).reshape(*expected.shape, -1).sum(-1) for m, c in zip(means, changes, strict=True))
    size = torch.zeros_like(expected[0])
    for c in changes:
        size = size + (c * c).reshape(*size.shape, -1).sum(-1)
    rest = (expected - given) / torch.where(size == 0, 1, size)
    for mean, change in zip(means, changes, strict=True):
        mean += rest.reshape(*rest.shape, *(1,) * (mean.dim() - lead)) * change
