"""What the comparison of two models found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from passes.errors import RewriteError
from rewriter.compiler.report import render_table

Kind = Literal["run", "structure", "output", "buffer after the call", "input gradient", "parameter gradient"]

# Failures that a table explains in full: the first few tell what the others follow from.
_DETAILS = 10


@dataclass(frozen=True)
class Comparison:
    """One place of both models, at the seed where they differ most.

    Args:
        dtype: ``"float32"``, ``"float64"``, …: what both models were converted to.
        kind: what was compared; ``"structure"`` is everything but numbers, ``"run"`` whether the
            rewritten model runs at all.
        place: ``output[1][0]``, ``input['x']``, or the name of a parameter or buffer of the original.
        absolute: largest absolute difference; infinite where no difference can be taken.
        relative: the same over max(1, max |original|).
        allowed: what ``relative`` may be.
        seed: the seed; 0 stands for the example inputs themselves.
        index: where in the tensor.
        problem: what is wrong, or ``""``.

    Example:
        >>> Comparison("float32", "output", "output[0]", 0.5, 0.5, 1e-5, 0, (1, 2), "too far").equal
        False

    """

    dtype: str
    kind: Kind
    place: str
    absolute: float = 0.0
    relative: float = 0.0
    allowed: float = 0.0
    seed: int = 0
    index: tuple[int, ...] = ()
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether nothing is wrong here."""
        return not self.problem

    def __str__(self) -> str:
        return f"{self.dtype}, seed {self.seed}, {self.kind} {self.place}: {self.problem or 'equal'}"


@dataclass(frozen=True)
class EquivalenceReport:
    """How far a rewritten model is from its original; ``print`` shows it as a table.

    Args:
        original: class name of the original.
        rewritten: class name of the rewritten model.
        seeds: number of different inputs that ran; the first is the example, the others are random.
        dtypes: the dtypes that were asked for.
        comparisons: every output, buffer, input gradient and parameter gradient, in each dtype.
        not_compared: the dtypes in which the original itself does not run, with the reason.
        notes: what else a reader should know.

    Example:
        >>> import torch
        >>> from rewriter import check_equivalence, decompose
        >>> lstm = torch.nn.LSTM(3, 2)
        >>> report = check_equivalence(lstm, decompose(lstm), torch.randn(5, 1, 3))
        >>> report.equal, [each.place for each in report.comparisons if each.kind == "output"][:3]
        (True, ['output[0]', 'output[1][0]', 'output[1][1]'])

    """

    original: str
    rewritten: str
    seeds: int
    dtypes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    not_compared: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """The comparisons that found a difference."""
        return tuple(each for each in self.comparisons if not each.equal)

    @property
    def equal(self) -> bool:
        """Whether everything was compared, in every dtype, and nothing differs."""
        return not self.failures and not self.not_compared

    def __bool__(self) -> bool:
        """Whether the models are equal."""
        return self.equal

    def equal_in(self, dtype: str) -> bool:
        """Whether the models were compared in ``dtype``, as in ``"float64"``, and nothing differs.

        Example:
            >>> EquivalenceReport("A", "B", 1, ("float32",), ()).equal_in("float64")
            False

        """
        compared = dtype in self.dtypes and dtype not in self.not_compared
        return compared and not any(each.dtype == dtype for each in self.failures)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data that every JSON reader takes: an infinite number is None.

        Example:
            >>> EquivalenceReport("A", "B", 1, ("float32",), ()).to_dict()["equal"]
            True

        """
        return {
            "equal": self.equal,
            **asdict(self),
            "comparisons": [_plain(each) for each in self.comparisons],
            "not_compared": dict(self.not_compared),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text.

        Example:
            >>> EquivalenceReport("A", "B", 1, ("float32",), ()).to_json().splitlines()[1]
            '  "equal": true,'

        """
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        header = (
            "dtype",
            "what",
            "where it differs most",
            "absolute",
            "relative",
            "allowed",
            "seed",
            "verdict",
        )
        lines = [self._verdict(), "", render_table(header, [_row(each, n) for each, n in self._shown()]), ""]
        lines += [f"different: {each}" for each in self.failures[:_DETAILS]]
        if len(self.failures) > _DETAILS:
            lines.append(f"different: {len(self.failures) - _DETAILS} more, all in the report's failures")
        lines += [f"not compared in {dtype}: {reason}" for dtype, reason in self.not_compared.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines).rstrip()

    def _verdict(self) -> str:
        pair = f"{self.original} and {self.rewritten}"
        if self.failures:
            return f"{pair} are NOT equal: {len(self.failures)} of {len(self.comparisons)} comparisons differ"
        compared = [dtype for dtype in self.dtypes if dtype not in self.not_compared]
        return f"{pair} are equal in {' and '.join(compared) or 'no dtype'}, for {self.seeds} input(s)"

    def _shown(self) -> list[tuple[Comparison, int]]:
        """Choose the rows: all but the equal parameters, of which the worst stands for its dtype."""
        shown: list[tuple[Comparison, int]] = []
        for dtype in self.dtypes:
            here = [each for each in self.comparisons if each.dtype == dtype]
            equal = [each for each in here if each.kind == "parameter gradient" and each.equal]
            shown += [(each, 1) for each in here if each.kind != "parameter gradient" or not each.equal]
            if equal:
                shown.append((max(equal, key=lambda each: each.relative), len(equal)))
        return shown


class EquivalenceError(RewriteError, AssertionError):
    """Two models are not equal, or could not be compared; ``report`` says where.

    Args:
        report: the comparison.

    Example:
        >>> EquivalenceError(EquivalenceReport("A", "B", 1, ("float32",), ())).report.original
        'A'

    """

    def __init__(self, report: EquivalenceReport) -> None:
        self.report = report
        message = str(report)
        if report.not_compared and not report.failures:
            message += "\nTo leave a dtype out, pass tolerances with those to compare in, and no others."
        super().__init__(message)

    def __reduce__(self) -> tuple[type[EquivalenceError], tuple[EquivalenceReport]]:
        return type(self), (self.report,)


def _plain(comparison: Comparison) -> dict[str, Any]:
    data = {"equal": comparison.equal, **asdict(comparison)}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in data.items()
    }


def _row(comparison: Comparison, standing_for: int) -> tuple[str, ...]:
    where = comparison.place + (f" at {list(comparison.index)}" if comparison.index else "")
    numeric = comparison.kind not in ("run", "structure") and math.isfinite(comparison.relative)
    return (
        comparison.dtype,
        comparison.kind + (f"s, worst of {standing_for}" if standing_for > 1 else ""),
        where,
        _figure(comparison.absolute) if numeric else "",
        _figure(comparison.relative) if numeric else "",
        _figure(comparison.allowed) if numeric else "",
        str(comparison.seed),
        "equal" if comparison.equal else "DIFFERENT",
    )


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"
