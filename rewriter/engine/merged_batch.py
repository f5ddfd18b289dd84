"""Where the rows of a batch are that a model has merged with another dimension, such as time.

``x.flatten(0, 1)`` of (B, T, F) keeps the steps of a row together, of (T, B, F) the rows of a step; either
way the result is (B x T, F). Rather than guess, a run tells: what a change of one row reaches are its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rewriter.engine.sweeps.linked_recurrence import Forward
from rewriter.engine.tape import Outers, Tape

Inputs = list[Tensor]
Record = Callable[[Inputs, Tape], Tape]
# NaN gets everywhere, a number also where the model refuses NaN.
_MARKS = (torch.nan, 1.0)


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
    found: list[list[int | None]] = [[None] * len(entry) for entry in shapes]
    for mark in _MARKS:
        inputs = _times(row, 2)
        for each in inputs:
            if each.is_floating_point():
                each[1] += mark
        marked = Tape(tokens=two.tokens, mark=mark, marked=[index.shape for index in three.indices])
        try:
            record(inputs, marked)
        except Exception:
            # A model may refuse NaN in its own way.
            continue
        for known, tensors, pairs in zip(found, _alike(two, marked), shapes, strict=False):
            for k, (a, b, pair) in enumerate(zip(*tensors, pairs, strict=True)):
                if known[k] is None and a.shape == b.shape:
                    known[k] = _outer(a != b, *_batch(pair))
    return [tuple(each or 1 for each in known) for known in found]


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
        return [entry.kept[0]]
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


def _outer(marked: Tensor, dim: int, each: int) -> int | None:
    """Return how many steps lie outside of the batch, of two rows; None if that cannot be seen.

    Args:
        marked: what a change of the second row has reached.
        dim: the dimension of the batch.
        each: how many of each row there are in it.

    Example:
        >>> _outer(torch.tensor([False, True]).repeat(3), 0, 3)
        3

    """
    reached = marked.movedim(dim, 0).flatten(1).any(1) if marked.dim() > 1 else marked
    for outer in range(1, each + 1):
        if each % outer == 0 and bool(reached.any()):
            rows = torch.unflatten(reached, 0, (outer, 2, -1))
            if not rows[:, 0].any():
                return outer
    return None
