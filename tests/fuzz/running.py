"""Draw examples of a property until the time is over; shrink each violation that is new."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.judging import Judge, Violation
from tests.fuzz.programs import Drawn

# So many of one kind are shrunk and printed: one fault may lie behind many combinations.
_OF_A_KIND = 3
# Examples between two looks at the clock.
_BATCH = 50
# Seconds in which a violation is shrunk.
_SHRINKING = 60.0


@dataclass(frozen=True, repr=False)
class Property:
    """What must hold for everything that a strategy draws.

    Args:
        name: of the property.
        examples: what is drawn.
        judge: returns what became of an example, or raises a violation.
        bounded: how many examples a run of the tests draws.

    """

    name: str
    examples: st.SearchStrategy[Any]
    judge: Judge
    bounded: int

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Found:
    """A violation, with the smallest example that shows it."""

    violation: Violation
    example: Drawn

    def like(self, kind: str, example: Drawn) -> bool:
        """Whether another violation is of this kind, of something that is made of the same."""
        return kind == self.violation.kind and set(self.example.names) <= set(example.names)


@dataclass
class Tally:
    """What became of the examples of a property."""

    outcomes: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)
    #: Violations of a kind that was found before.
    again: int = 0


class _Search:
    """One run of Hypothesis, which ends with its first violation, shrunk."""

    def __init__(self, property: Property, tally: Tally, until: float) -> None:
        self.property, self.tally, self.until = property, tally, until
        self.smallest: Found | None = None
        self.began_shrinking = 0.0

    def __call__(self, example: Drawn) -> None:
        now = time.monotonic()
        if self.smallest is None and now > self.until:
            return
        if self.smallest is not None and now > self.began_shrinking + _SHRINKING:
            # Hypothesis has no limit of its own that is so short: with nothing that fails it ends.
            return
        try:
            outcome = self.property.judge(example)
        except Violation as violation:
            like = [each.like(violation.kind, example) for each in self.tally.found]
            kinds = [each.violation.kind for each in self.tally.found]
            if any(like) or kinds.count(violation.kind) >= _OF_A_KIND:
                self.tally.again += 1
                return
            if self.smallest is None:
                self.began_shrinking = now
            if self.smallest is None or len(example.text) <= len(self.smallest.example.text):
                self.smallest = Found(violation, example)
            raise
        if self.smallest is None:
            self.tally.outcomes[outcome] += 1
            self.tally.names |= set(example.names)


def search(
    property: Property,
    *,
    first_seed: int,
    seconds: float | None = None,
    examples: int | None = None,
    say: Callable[[Found], None] = lambda _: None,
) -> Tally:
    """Draw examples, with seeds that follow each other.

    Args:
        property: what must hold.
        first_seed: of the first batch; the next has the next.
        seconds: to go on for, but for the shrinking.
        examples: to draw.
        say: is told of each violation that is new.

    """
    tally = Tally()
    until = time.monotonic() + (seconds if seconds is not None else float("inf"))
    number = first_seed
    while time.monotonic() < until:
        left = _BATCH if examples is None else examples - sum(tally.outcomes.values()) - tally.again
        if left <= 0:
            break
        run = _Search(property, tally, until)
        _hypothesis(run, property.examples, number, min(left, _BATCH))
        if run.smallest is not None:
            tally.found.append(run.smallest)
            say(run.smallest)
        elif left <= _BATCH and examples is not None:
            break
        number += 1
    return tally


def _hypothesis(run: _Search, strategy: st.SearchStrategy[Any], number: int, count: int) -> None:
    @seed(number)
    @settings(
        max_examples=count,
        derandomize=False,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def drawn(example: Drawn) -> None:
        run(example)

    try:
        drawn()
    except Exception:
        # The violation is kept; what is raised otherwise is a fault of the tests.
        if run.smallest is None:
            raise
