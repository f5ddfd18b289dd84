"""Where the rows of a batch are that a model has merged with another dimension, such as time.

``x.flatten(0, 1)`` of (B, T, F) keeps the steps of a row together, of (T, B, F) the rows of a step; either
way the result is (B x T, F). Rather than guess, a run tells: what a change of one row reaches are its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewriter.engine.sweeps.linked_recurrence import Forward
from rewriter.engine.tape import Outers, Tape

Inputs = list[Tensor]
Record = Callable[[Inputs, Tape], Tape]
# NaN gets everywhere, a number also where the model refuses NaN.
_MARKS = (torch.nan, 1.0)


@dataclass(frozen=True)
class Layouts:
    """What the batch is merged with, in each tensor that each operation leaves.

    Args:
        outers: per operation, the size of what lies outside of the batch, 1 for each tensor whose batch is
            the outermost of what is merged; nothing at all if that is so everywhere.
        proven: no other layout would do; else nothing that was run reached enough of a tensor to tell.
        counts_rows: which operations run, or on what, depends on the number of rows, as in a loop over them.
        batches: per operation and tensor, the dimension of the batch and how many of each row there are.

    """

    outers: list[Outers] = field(default_factory=list)
    proven: bool = True
    counts_rows: bool = False
    batches: list[list[tuple[int, int] | None]] = field(default_factory=list)

    def fits(self, rows: int, place: int, entry: Any) -> bool:
        """Whether what an operation leaves of so many rows has a part for each of them.

        Args:
            rows: their number.
            place: of the operation in the run.
            entry: what it leaves.

        """
        tensors = _tensors(entry)
        if place >= len(self.batches) or len(tensors) != len(self.batches[place]):
            return False
        return all(
            batch is None or (batch[0] < each.dim() and each.shape[batch[0]] == rows * batch[1])
            for each, batch in zip(tensors, self.batches[place], strict=True)
        )


def layouts_of(record: Record, row: Inputs, two: Tape, others: Iterable[Inputs]) -> Layouts:
    """Find where the batch is merged with other dimensions, and how.

    Args:
        record: runs rows and notes what they leave on a tape.
        row: one sample.
        two: what it left twice.
        others: more rows, a few at a time; asked for if a change of that sample does not reach everything.

    """
    three = record(_times(row, 3), Tape(tokens=two.tokens))
    if not _alike(two, three):
        return Layouts(counts_rows=bool(two.entries or three.entries))
    shapes = [[(a.shape, b.shape) for a, b in zip(*both, strict=True)] for both in _alike(two, three)]
    if any(_counts_rows(*each) for entry in shapes for each in entry):
        return Layouts(counts_rows=True)
    batches = [[_batch(each) for each in entry] for entry in shapes]
    told = [
        [place if a != b else None for place, (a, b) in zip(*each, strict=True)]
        for each in zip(batches, shapes, strict=True)
    ]
    if not any(each > 1 for entry in batches for _, each in entry):
        return Layouts(batches=told)
    alike = [_tensors(entry) for _, entry in two.entries]
    left = [
        [_where_rows_are_equal(tensor, *place) for tensor, place in zip(*entry, strict=True)]
        for entry in zip(alike, batches, strict=True)
    ]
    for same, changed, rows in _changed(record, row, two, three, others):
        for entry, tensors, places in zip(left, _alike(same, changed), batches, strict=False):
            for k, (a, b, (dim, each)) in enumerate(zip(*tensors, places, strict=True)):
                if len(entry[k]) > 1 and a.shape == b.shape:
                    reached = _reached(a, b, dim)
                    entry[k] = [n for n in entry[k] if _fits(reached, n, rows, each)] or entry[k]
        if _all_told(left):
            break
    outers = [tuple(each[0] for each in entry) for entry in left]
    return Layouts(outers, proven=_all_told(left), batches=told)


def _all_told(left: list[list[list[int]]]) -> bool:
    return all(len(each) == 1 for entry in left for each in entry)


def _changed(
    record: Record, row: Inputs, two: Tape, three: Tape, others: Iterable[Inputs]
) -> Iterator[tuple[Tape, Tape, int]]:
    """Yield what equal rows leave, what they leave when all but the first are changed, and their number."""
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
        yield two, marked, 2
    for rows in others:
        count = 1 + len(rows[0])
        inputs = [torch.cat([each, other]) for each, other in zip(row, rows, strict=True)]
        yield (
            record(_times(row, count), Tape(tokens=two.tokens)),
            record(inputs, Tape(tokens=two.tokens)),
            count,
        )


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


def _counts_rows(two: torch.Size, three: torch.Size) -> bool:
    """Whether what two and three rows have left are not two and three of the same.

    Example:
        >>> _counts_rows(torch.Size([4]), torch.Size([6])), _counts_rows(torch.Size([1]), torch.Size([2]))
        (False, True)

    """
    differing = [d for d in range(min(len(two), len(three))) if two[d] != three[d]]
    return len(differing) == 1 and 3 * two[differing[0]] != 2 * three[differing[0]]


def _where_rows_are_equal(two: Tensor, dim: int, each: int) -> list[int]:
    """Return what may lie outside of the batch, seen from what two equal rows have left.

    Example:
        >>> _where_rows_are_equal(torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]), 0, 4)
        [4]

    """
    found = [n for n in range(1, each + 1) if each % n == 0]
    if len(found) == 1:
        return found
    rows = two.movedim(dim, 0)
    split = [(n, torch.unflatten(rows, 0, (n, 2, -1))) for n in found]
    # Rounding may differ from row to row.
    return [n for n, part in split if part[:, 0].allclose(part[:, 1], equal_nan=True)] or found


def _reached(same: Tensor, changed: Tensor, dim: int) -> Tensor:
    """Return where in the dimension of the batch a change is seen."""
    differs = (same != changed).movedim(dim, 0)
    return differs.flatten(1).any(1) if differs.dim() > 1 else differs


def _fits(reached: Tensor, outer: int, rows: int, each: int) -> bool:
    """Whether the first row, which nobody changed, is where nothing was reached.

    Args:
        reached: what a change of the other rows has reached.
        outer: how many steps lie outside of the batch.
        rows: their number.
        each: how many of each row there are in it.

    Example:
        >>> reached = torch.tensor([False, True]).repeat(3)
        >>> _fits(reached, 3, 2, 3), _fits(reached, 1, 2, 3)
        (True, False)

    """
    return not bool(reached.view(outer, rows, each // outer)[:, 0].any())
