"""Where the rows of a batch are that a model has merged with another dimension, such as time.

``x.flatten(0, 1)`` of (B, T, F) keeps the steps of a row together, of (T, B, F) the rows of a step; either
way the result is (B x T, F). Rather than guess, one run tells: what NaN in one row reaches are its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rewriter._linked import Outers, Tape
from rewriter._linked_recurrence import Forward

Inputs = list[Tensor]
Record = Callable[[Inputs, Tape], Tape]


def outers_of(record: Record, row: Inputs, two: Tape) -> list[Outers]:
    """Return, for each tensor that each operation leaves, what is merged with the batch outside of it.

    Args:
        record: runs rows and notes what they leave on a tape.
        row: one sample.
        two: what it left twice.

    Returns:
        Per operation, 1 for each tensor whose batch is the outermost of what is merged; nothing at all if
        that is so everywhere.

    """
    three = record(_times(row, 3), Tape(tokens=two.tokens))
    shapes = [[(a.shape, b.shape) for a, b in zip(*both, strict=True)] for both in _alike(two, three)]
    if not any(each > 1 for entry in shapes for _, each in map(_batch, entry)):
        return []
    inputs = _times(row, 2)
    for each in inputs:
        if each.is_floating_point():
            each[1] = torch.nan
    marked = Tape(tokens=two.tokens, marked=[index.shape for index in three.indices])
    try:
        record(inputs, marked)
    except Exception:
        # A model may refuse NaN in its own way; then nothing is known.
        return []
    tensors = [_tensors(entry) for _, entry in marked.entries]
    if [name for name, _ in marked.entries] != [name for name, _ in two.entries]:
        return []
    return [
        tuple(_outer(tensor, *_batch(pair)) for tensor, pair in zip(entry, pairs, strict=True))
        for entry, pairs in zip(tensors, shapes, strict=True)
    ]


def _times(row: Inputs, count: int) -> Inputs:
    return [each.repeat(count, *(1,) * (each.dim() - 1)) for each in row]


def _alike(a: Tape, b: Tape) -> list[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    if [name for name, _ in a.entries] != [name for name, _ in b.entries]:
        return []
    return [
        (_tensors(entry), _tensors(other))
        for (_, entry), (_, other) in zip(a.entries, b.entries, strict=True)
    ]


def _tensors(entry: Any) -> Sequence[Tensor]:
    """Return what one operation left: its operands and its output, or the arguments of a recurrence."""
    if isinstance(entry, Forward):
        return [entry.kept.before]
    operands, output = entry
    return [*operands, output]


def _batch(shapes: tuple[torch.Size, torch.Size]) -> tuple[int, int]:
    """Return the dimension of the batch, and how many of each row there are in it; 1 if there is none.

    Example:
        >>> _batch((torch.Size([5, 2, 3]), torch.Size([5, 3, 3])))
        (1, 1)
        >>> _batch((torch.Size([8]), torch.Size([12])))
        (0, 4)

    """
    two, three = shapes
    differing = [d for d in range(min(len(two), len(three))) if two[d] != three[d]]
    return (differing[0], two[differing[0]] // 2) if len(differing) == 1 else (0, 1)


def _outer(tensor: Tensor, dim: int, each: int) -> int:
    """Return how many steps lie outside of the batch, of two rows the second of which holds NaN.

    Example:
        >>> _outer(torch.tensor([0, torch.nan]).repeat(3), 0, 3)
        3

    """
    if each == 1 or not tensor.is_floating_point():
        return 1
    marked = tensor.isnan().movedim(dim, 0).flatten(1).any(1) if tensor.dim() > 1 else tensor.isnan()
    for outer in range(1, each + 1):
        if each % outer == 0:
            rows = torch.unflatten(marked, 0, (outer, 2, -1))
            if rows[:, 1].all() and not rows[:, 0].any():
                return outer
    return 1
