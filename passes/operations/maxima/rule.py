"""The rule for maxima: the Shapley value of the game whose players take their sample's or reference's value.

The maximum is the integral over all levels ``t`` of the indicator that some element exceeds ``t``. Above
one level that game is as simple as can be: a player whose sample alone exceeds it (of whom there are a)
turns it on if every player whose reference alone exceeds it (b of those) came before and no other of its
own kind did, which is so in 1 / (a C(a + b, a)) of the orders; a player whose reference alone exceeds it
turns it off in 1 / (b C(a + b, a)) of them. Where both values of one player exceed the level nobody
changes anything: so all of it happens above the largest of the smaller values, and what is left is a sum
over the larger values, sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.maxima.extrema import Extremum, RunningExtremum
from passes.operations.running import running_multipliers


def maximum_multipliers(x: Tensor, x0: Tensor) -> Tensor:
    """Return the multipliers of the maximum over the last dimension; elements of -inf get no share.

    Each lies between 0 and 1, and times ``x - x0`` is the element's Shapley value (Shapley 1953) exactly,
    in O(n log n). Where an element does not differ it is the limit of that, the derivative.

    Args:
        x: samples, (..., n).
        x0: references, broadcast with them.

    Example:
        >>> maximum_multipliers(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor([0.5000, 0.5000])

    """
    higher = torch.maximum(x, x0)
    floor = torch.minimum(x, x0).amax(-1, keepdim=True)
    levels, order = torch.maximum(higher, floor).sort(-1, descending=True)
    counts = levels > floor
    rises = (x > x0).expand(higher.shape).gather(-1, order)
    a = (rises & counts).cumsum(-1).to(levels.dtype)
    b = (~rises & counts).cumsum(-1).to(levels.dtype)
    # One more of a kind makes of 1 / C(a + b, a) that times a / (a + b), or b / (a + b).
    among = torch.where(counts, torch.where(rises, a, b) / (a + b).clamp_min(1), 1).cumprod(-1)
    gap = torch.where(counts, levels - torch.cat((levels[..., 1:], floor), -1), 0) * among
    share = torch.where(rises, _from_here(gap / a.clamp_min(1)), -_from_here(gap / b.clamp_min(1)))
    share = torch.empty_like(share).scatter_(-1, order, share)
    same = x == x0
    at_floor = same & (x == floor)
    alone = among[..., -1:] / (a + b + 1)[..., -1:] / at_floor.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(same, torch.where(at_floor, alone, 0), share / torch.where(same, 1, x - x0))


def _from_here(values: Tensor) -> Tensor:
    """Sum what stands here and behind."""
    return values.flip(-1).cumsum(-1).flip(-1)


def extremum_pull(atom: Extremum, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers of a maximum or minimum over dimensions to its operand.

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
    given = (atom.dim,) if isinstance(atom.dim, int) else atom.dim
    dims = sorted(dim % rank for dim in given)
    if not atom.keepdim:
        for dim in dims:
            d = d.unsqueeze(dim + 2)
    if atom.function.endswith("min"):
        sample, reference = -sample, -reference
    # From the front these are off by the dimension of pairs, from the back they are not.
    behind = [dim - rank for dim in dims]
    last = list(range(-len(dims), 0))
    moved = sample.movedim(behind, last)
    multipliers = maximum_multipliers(
        moved.flatten(-len(dims)), reference.movedim(behind, last).flatten(-len(dims))
    )
    shaped = torch.unflatten(multipliers, -1, moved.shape[-len(dims) :]).movedim(last, behind)
    return (d * shaped,)


def running_pull(
    atom: RunningExtremum, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers of running maxima or minima to their operand: each is one of all before it.

    Args:
        atom: the operation.
        x: the operand of the samples, (n or 1, *operand shape).
        x0: of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *operand shape).

    """
    sample, reference = torch.broadcast_tensors(x[0], x0[0])  # type: ignore[no-untyped-call]
    if atom.function.endswith("min"):
        sample, reference = -sample, -reference
    rank = sample.dim() - 1
    return (running_multipliers(maximum_multipliers, sample, reference, d, atom.dim % rank - rank),)
