"""Find the order in which a model merges its batch with another dimension.

Where the batch is can be seen from sizes, (M · each) for samples and (N · each) for references, but not
whether a merged dimension counts rows first, as ``(B, T)`` does, or last, as ``(T, B)`` does. So two rows are
run twice, the second time exchanged: the order is the one in which that exchanges the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter._linked import Tape
from rewriter._linked_recurrence import Forward

#: By the place of an operation on the tape: how many values of the other dimension are in front of the batch,
#: for each of its operands and its output.
Merged = Mapping[int, tuple[int, ...]]


def merged_axes(
    one: Tape, row: list[Tensor], other: list[Tensor], record: Callable[[list[Tensor]], Tape]
) -> Merged:
    """Return what is merged in another order than rows first.

    Args:
        one: the run of ``row``.
        row: inputs, one row each.
        other: another row.
        record: runs rows.

    Raises:
        RewriteError: if a recurrent layer gets such a batch, which its sweep does not take.

    """
    rows = [torch.cat([_stirred(a), b]) for a, b in zip(row, other, strict=True)]
    two = record(rows)
    if not _same_path(one, two) or not any(_axis(*pair) for pair in zip(_all(one), _all(two), strict=True)):
        return {}
    turned = record([each.flip(0) for each in rows])
    if not _same_path(one, turned):
        return {}
    found: dict[int, tuple[int, ...]] = {}
    known: dict[int, int] = {}
    for place, name in enumerate(name for name, _ in one.entries):
        runs = (_held(run, place) for run in (one, two, turned))
        outer = tuple(_outer(a, b, c, known) for a, b, c in zip(*runs, strict=True))
        if set(outer) == {1}:
            continue
        if isinstance(one.entries[place][1], Forward):
            raise RewriteError(
                f"{name}: gets a batch that is merged with a dimension in front of it, (T, B); merge "
                "them the other way round, (B, T)"
            )
        found[place] = outer
    return found


def _stirred(row: Tensor) -> Tensor:
    """Let a row differ from any other, a little."""
    if not row.is_floating_point():
        return row
    return row * torch.linspace(0.97, 1.02, row.numel(), dtype=row.dtype, device=row.device).view(row.shape)


def _held(tape: Tape, place: int) -> list[Tensor]:
    entry = tape.entries[place][1]
    if isinstance(entry, Forward):
        return [each for each in entry.kept if each is not None]
    return [*entry[0], entry[1]]


def _all(tape: Tape) -> list[Tensor]:
    return [each for place in range(len(tape.entries)) for each in _held(tape, place)]


def _same_path(a: Tape, b: Tape) -> bool:
    return [name for name, _ in a.entries] == [name for name, _ in b.entries]


def _axis(one: Tensor, two: Tensor) -> int | None:
    """Return the dimension that holds the batch, counted from the end, if it is merged with something."""
    differing = [d for d in range(-one.dim(), 0) if one.shape[d] != two.shape[d]]
    if one.dim() != two.dim() or len(differing) != 1:
        return None
    each = one.shape[differing[0]]
    # What is not twice as long counts something else, such as the steps of sequences of different length.
    return differing[0] if each > 1 and two.shape[differing[0]] == 2 * each else None


def _outer(one: Tensor, two: Tensor, turned: Tensor, known: dict[int, int]) -> int:
    axis = _axis(one, two)
    if axis is None:
        return 1
    each = one.shape[axis]
    d = axis % two.dim()
    size = two.abs().amax().item() if two.numel() else 0.0
    fitting = [
        outer
        for outer in range(1, each + 1)
        if each % outer == 0
        and torch.allclose(
            torch.unflatten(two, d, (outer, 2, -1)).flip(d + 1).flatten(d, d + 2),
            turned,
            rtol=1e-4,
            atol=1e-5 * size,
            equal_nan=True,
        )
    ]
    if len(fitting) == 1:
        known[each] = fitting[0]
    # Values that are the same for both rows fit every order.
    return known[each] if known.get(each) in fitting else (fitting or [1])[0]
