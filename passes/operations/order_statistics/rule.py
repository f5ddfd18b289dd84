"""The rule of sorted elements: Shapley values of the games that each place of the order is.

An element of the order is the integral over all levels of "more than k elements exceed it", as a maximum is
for k = 0. Above one level only counts matter: c elements exceed it at both ends, a rise above it, b fall from
above it. In a random order of all moves, one that rises turns the indicator on if exactly k elements exceed
the level before it; one that falls turns it off if exactly k do behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.order_statistics.atom import OrderStatistics


def order_multipliers(x: Tensor, x0: Tensor, places: list[int]) -> Tensor:
    """Return multipliers of sorted elements; times ``x - x0`` they are Shapley values (Shapley 1953) exactly.

    Each lies between 0 and 1. Where an element does not differ it is the limit of that, the derivative.

    Args:
        x: samples, (..., n).
        x0: references, likewise.
        places: of the sorted elements, the largest of which has place 0.

    Returns:
        (..., len(places), n).

    Example:
        >>> order_multipliers(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), [0, 1])
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])

    """
    x, x0 = torch.broadcast_tensors(x, x0)  # type: ignore[no-untyped-call]
    high, low, rises, same = torch.maximum(x, x0), torch.minimum(x, x0), x > x0, x == x0
    levels = torch.cat((x, x0), -1).sort(-1, descending=True).values
    width = levels[..., :-1] - levels[..., 1:]
    width = torch.where(width.isfinite(), width, 0)
    exceeds, stays = (each.unsqueeze(-2) >= levels[..., :-1].unsqueeze(-1) for each in (high, low))
    k = torch.tensor(places, device=x.device)
    up, down = (each.unsqueeze(-2) & exceeds & ~stays for each in (rises, ~rises))
    a, b, c = (each.sum(-1) for each in (up, down, stays))
    s = k - c.unsqueeze(-1)
    a, b = a.unsqueeze(-1), b.unsqueeze(-1)
    turned_on = width.unsqueeze(-1) * _pivots(a, b, s, x.dtype)
    turned_off = width.unsqueeze(-1) * _pivots(b, a, a + b - 1 - s, x.dtype)
    share = turned_on.mT @ up.to(x.dtype) - turned_off.mT @ down.to(x.dtype)
    chord = share / torch.where(same, 1, x - x0).unsqueeze(-2)
    return torch.where(same.unsqueeze(-2), _derivatives(x, x0, k) if same.any() else 0, chord)


def _derivatives(x: Tensor, x0: Tensor, k: Tensor) -> Tensor:
    """Return how likely each element is to be the one at a place, if it moves among the others a little."""
    n = x.shape[-1]
    before = torch.ones(n, n, dtype=torch.bool, device=x.device).tril(-1)
    # Of elements that are equal, those that come first are the larger ones.
    now, then = (
        (side.unsqueeze(-2) > x.unsqueeze(-1)) | ((side.unsqueeze(-2) == x.unsqueeze(-1)) & before)
        for side in (x, x0)
    )
    a, b, c = ((now & ~then).sum(-1), (then & ~now).sum(-1), (now & then).sum(-1))
    found = _pivots((a + 1).unsqueeze(-1), b.unsqueeze(-1), k - c.unsqueeze(-1), x.dtype)
    return found.mT


def _pivots(a: Tensor, b: Tensor, s: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how likely it is that ``s`` more are up than down before a certain one of ``a`` that rise.

    Of the others i = s - b + j have risen and j of b fallen, in any of the orders of all:
    sum over j of C(a - 1, i) C(b, j) / ((a + b) C(a + b - 1, i + j)).
    """
    if not s.numel():
        return s.to(dtype)
    size = int((a + b).max()) + 1
    logs = torch.arange(size + 1, dtype=torch.float64, device=a.device).clamp_min(1).log()
    of = logs.cumsum(0)  # of factorials
    others, all_others = (a - 1).clamp_min(0), (a + b - 1).clamp_min(0)
    # What does not hang on j, which runs over few numbers in most rows.
    fixed = of[others] + of[b] - of[all_others] - logs[a + b]
    total = torch.zeros(s.shape, dtype=torch.float64, device=a.device)
    for j in range(int(b.max()) + 1):
        i = s - b + j
        known = (i >= 0) & (i < a) & (j <= b)
        i = torch.where(known, i, 0)
        left = torch.where(known, all_others - i - j, 0)
        orders = (
            of[i + j] - of[i] - of[(others - i).clamp_min(0)] + of[left] - of[j] - of[(b - j).clamp_min(0)]
        )
        total += torch.where(known, (fixed + orders).exp(), 0)
    return total.to(dtype)


def order_pull(
    atom: OrderStatistics, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers of sorted elements to those that are sorted.

    Args:
        atom: the operation.
        x: the operand of the samples, (n or 1, *operand shape).
        x0: of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *output shape).

    """
    sample, reference = x[0], x0[0]
    rank = sample.dim() - 1
    if rank == 0:
        # A number is sorted already, and several quantiles of it are itself.
        return (d.reshape(*d.shape[:2], -1).sum(-1),)
    dim = atom.dim % rank - rank
    if atom.removes:
        d = d.unsqueeze(dim)
    elif atom.leads:
        d = d.squeeze(dim) if atom.options.get("keepdim", False) else d
        d = d.movedim(2, dim) if d.dim() == rank + 2 else d.movedim(2, -1)
    moved, moved0, d = sample.movedim(dim, -1), reference.movedim(dim, -1), d.movedim(dim, -1)
    if not atom.function.startswith("nan"):
        pulled = _of_counted(atom, moved, moved0, d, moved.shape[-1])
        return (pulled.movedim(-1, dim),)
    # What is not a number counts nothing: it stands behind all others, whose number is that of the row.
    counts = (~(moved.isnan() | moved0.isnan())).sum(-1, keepdim=True)
    moved, moved0 = (each.masked_fill(each.isnan(), -torch.inf) for each in (moved, moved0))
    pulled = d.new_zeros(*d.shape[:-1], moved.shape[-1])
    for count in sorted(set(counts.flatten().tolist())):
        if count:
            pulled = torch.where(counts == count, _of_counted(atom, moved, moved0, d, count), pulled)
    return (pulled.movedim(-1, dim),)


def _of_counted(atom: OrderStatistics, x: Tensor, x0: Tensor, d: Tensor, count: int) -> Tensor:
    """Take multipliers, (K, n, *, places), to the elements of rows in which so many count."""
    made_of = atom.places(count)
    used = sorted({place for each in made_of for place in each})
    shares = d.new_zeros(len(made_of), len(used))
    for row, each in enumerate(made_of):
        for place, share in each.items():
            shares[row, used.index(place)] = share
    return ((d @ shares).unsqueeze(-2) @ order_multipliers(x, x0, used)).squeeze(-2)
