"""Rows that stand for many: distances between sequences, and medoids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Medoids are looked for among so many rows, of which all distances are held.
MOST = 1000


def scales_of(data: Sequence[Tensor]) -> list[Tensor]:
    """Return what differences are divided by: the deviation of each feature over rows and steps.

    Args:
        data: one tensor (N, *shape) per input; features are in its last dimension.

    Example:
        >>> scales_of([torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])])
        [tensor([1., 1.], dtype=torch.float64)]

    """
    found = []
    for each in data:
        features = each.double().reshape(-1, each.shape[-1] if each.dim() > 1 else 1)
        deviation = features.std(0, correction=0)
        # A feature that is the same everywhere counts as it is where something else has another.
        found.append(torch.where(deviation > 0, deviation, 1.0))
    return found


def distances_to(
    row: Sequence[Tensor],
    data: Sequence[Tensor],
    scales: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return the distance of a row to each row of data, (N,).

    It is Euclidean, of numbers in deviations of their feature; integers and booleans are at a distance of
    one where they differ.

    Args:
        row: one tensor (*shape) per input.
        data: one (N, *shape) per input.
        scales: of :func:`scales_of`.
        masks: the elements that count, (*shape) per input; all by default.

    Example:
        >>> row, data = torch.tensor([[1.0], [2.0]]), torch.tensor([[[1.0], [2.0]], [[4.0], [6.0]]])
        >>> distances_to([row], [data], [torch.ones(1)])
        tensor([0., 5.], dtype=torch.float64)

    """
    total = torch.zeros(len(data[0]), dtype=torch.float64, device=data[0].device)
    for k, (one, many, scale) in enumerate(zip(row, data, scales, strict=True)):
        if many.is_floating_point():
            shape = scale if many.dim() > 1 else scale[0]
            squares = ((many.double() - one.double()) / shape).square()
        else:
            squares = (many != one).double()
        if masks is not None:
            squares = squares * masks[k]
        total += squares.reshape(len(many), -1).sum(1)
    return total.sqrt()


def medoids(distances: Tensor, count: int) -> Tensor:
    """Return the rows whose distances to all others' nearest are least in sum, as one exchange can make it.

    Partitioning around medoids, Kaufman and Rousseeuw 1990, "Finding Groups in Data", chapter 2: greedily
    built, then the best exchange of a medoid for another row is made as long as one helps.

    Args:
        distances: between all rows (N, N).
        count: how many, N at most.

    Returns:
        Indices (count,), the row that stands for most first.

    Example:
        >>> at = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0])
        >>> medoids((at[:, None] - at).abs(), 2)
        tensor([1, 3])

    """
    chosen: list[int] = []
    nearest = torch.full_like(distances[0], torch.inf)
    while len(chosen) < count:
        costs = torch.minimum(distances, nearest).sum(1)
        costs[chosen] = torch.inf
        chosen.append(int(costs.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    cost = float(nearest.sum())
    while True:
        best, place, candidate = cost, -1, -1
        for k in range(count):
            others = [each for each in chosen if each != chosen[k]]
            kept = distances[others].amin(0) if others else torch.full_like(nearest, torch.inf)
            costs = torch.minimum(distances, kept).sum(1)
            costs[chosen] = torch.inf
            if float(costs.min()) < best:
                best, place, candidate = float(costs.min()), k, int(costs.argmin())
        # An exchange that helps by rounding alone might be made back and forth.
        if best >= cost * (1 - 1e-12):
            break
        chosen[place], cost = candidate, best
    served = torch.bincount(distances[chosen].argmin(0), minlength=count)
    order = served.argsort(descending=True, stable=True)
    return torch.tensor(chosen)[order.cpu()]
