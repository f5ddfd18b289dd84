"""Let registers that are no longer read be written again, so that a step fits in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rewriter.engine.sweeps.program import READS, WRITES, Operation


class Emitted(NamedTuple):
    """An operation whose registers are each written for one purpose.

    Args:
        what: its number.
        to: the register that is written, or a state, or a gate.
        a: operands: registers, or numbers of something else.
        b: likewise.
        c: likewise.
        by: a number.

    """

    what: int
    to: int
    a: int
    b: int
    c: int
    by: float


def packed(emitted: Sequence[Emitted], once: int) -> tuple[list[Operation], int]:
    """Return the same operations on few registers, and how many these are.

    Args:
        emitted: the operations.
        once: how many of them come before those that are repeated, for each output.

    Example:
        >>> from rewriter.engine.sweeps.program import number_of
        >>> doubles = [Emitted(number_of("set"), k + 1, k, 0, 0, 2.0) for k in range(5)]
        >>> packed([Emitted(number_of("kept"), 0, 0, 0, 0, 1.0), *doubles], once=6)[1]
        2

    """
    last: dict[int, int] = {}
    made: dict[int, int] = {}
    for place, each in enumerate(emitted):
        for register in _read(each):
            # What is repeated reads what was made once again.
            last[register] = len(emitted) if place >= once > made[register] else place
        if each.what in WRITES:
            made.setdefault(each.to, place)
            last[each.to] = max(last.get(each.to, 0), place)
    number: dict[int, int] = {}
    free: list[int] = []
    count = 0
    result: list[Operation] = []
    for place, each in enumerate(emitted):
        if each.what in WRITES and each.to not in number:
            if not free:
                free.append(count)
                count += 1
            number[each.to] = free.pop()
        to = number[each.to] if each.what in WRITES else each.to
        a, b, c = (
            number[value] if name in READS[each.what] and value >= 0 else value
            for name, value in (("a", each.a), ("b", each.b), ("c", each.c))
        )
        result.append((each.what, to, a, b, c, each.by))
        ending = {*_read(each), *([each.to] if each.what in WRITES else [])}
        free += [number[register] for register in ending if last[register] == place]
    return result, count


def _read(each: Emitted) -> list[int]:
    named = {"a": each.a, "b": each.b, "c": each.c, "t": each.to}
    return [named[name] for name in READS[each.what] if named[name] >= 0]
