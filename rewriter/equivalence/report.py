"""What the comparison of two models found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from passes.errors import RewriteError
from rewriter.compiler.report import printable, render_table

Kind = Literal["run", "structure", "output", "buffer after the call", "input gradient", "parameter gradient"]

_HEADER = (
    "dtype",
    "what",
    "where it differs most",
    "absolute",
    "relative",
    "allowed",
    "seed",
    "verdict",
)
# Comparisons of one kind and verdict that get a row each: a recurrent layer has three outputs.
_ROWS = 3
# Failures that a report explains in full: the first few tell what the others follow from.
_DETAILS = 4
# Notes, and names of parameters, that it shows: all are in the JSON.
_NOTES = 5
_NAMES = 3


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
        first_layer: a sentence that names the first layer that differs, in the order of the computation;
            ``""`` if nothing differs, or no layer can be told.
        other_weights: the original's parameters that have other numbers in the rewritten model, if the
            models are not equal.
        inputs: for each seed, what the inputs were: shapes, dtypes and devices.
        versions: of Python, torch and this package.
        weights: a hash of the parameters and buffers of each model.

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
    # What is new has a default of its class, which reports have that were saved before.
    first_layer: str = ""
    other_weights: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None
    weights: Mapping[str, str] | None = None

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
            "inputs": dict(enumerate(self.inputs)),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text.

        Example:
            >>> EquivalenceReport("A", "B", 1, ("float32",), ()).to_json().splitlines()[1]
            '  "equal": true,'

        """
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        lines = [self._verdict(), *self._told(), "", render_table(_HEADER, self._rows()), ""]
        lines += _cut([str(each) for each in _worst_of_each(self.failures)], len(self.failures))
        lines += [f"not compared in {dtype}: {reason}" for dtype, reason in self.not_compared.items()]
        lines += [f"note: {note}" for note in self.notes[:_NOTES]]
        if len(self.notes) > _NOTES:
            lines.append(f"note: {len(self.notes) - _NOTES} more, all in the report's notes")
        return printable("\n".join(lines).rstrip())

    def _verdict(self) -> str:
        pair = f"{self.original} and {self.rewritten}"
        if self.failures:
            return f"{pair} are NOT equal: {len(self.failures)} of {len(self.comparisons)} comparisons differ"
        compared = [dtype for dtype in self.dtypes if dtype not in self.not_compared]
        return f"{pair} are equal in {' and '.join(compared) or 'no dtype'}, for {self.seeds} input(s)"

    def _told(self) -> list[str]:
        """Say where to look first."""
        lines = [self.first_layer] if self.first_layer else []
        if self.other_weights:
            shown = ", ".join(self.other_weights[:_NAMES])
            more = f" and {len(self.other_weights) - _NAMES} more" if len(self.other_weights) > _NAMES else ""
            lines.append(f"parameters with other numbers: {shown}{more}")
        return lines

    def _rows(self) -> list[tuple[str, ...]]:
        return [_row(*each) for dtype in self.dtypes for each in _groups(self.comparisons, dtype)]


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


def _worst_of_each(failures: tuple[Comparison, ...]) -> list[Comparison]:
    """Return one failure of each kind and dtype: the others follow from the same."""
    worst: dict[tuple[str, Kind], Comparison] = {}
    for each in failures:
        best = worst.setdefault((each.dtype, each.kind), each)
        if each.relative > best.relative:
            worst[each.dtype, each.kind] = each
    return list(worst.values())


def _cut(details: list[str], failures: int) -> list[str]:
    lines = [f"different: {each}" for each in details[:_DETAILS]]
    left = failures - len(lines)
    return [*lines, f"different: {left} more, all in the report's failures"] if left else lines


def _groups(comparisons: Sequence[Comparison], dtype: str) -> Iterator[tuple[Comparison, int]]:
    """Yield the rows: of many of one kind and verdict the worst stands for all."""
    groups: dict[tuple[str, bool], list[Comparison]] = {}
    for each in comparisons:
        if each.dtype == dtype:
            groups.setdefault((each.kind, each.equal), []).append(each)
    for (kind, equal), group in groups.items():
        if len(group) <= _ROWS and not (kind == "parameter gradient" and equal):
            yield from ((each, 1) for each in group)
        else:
            yield max(group, key=lambda each: each.relative), len(group)


def _row(comparison: Comparison, standing_for: int) -> tuple[str, ...]:
    where = comparison.place + (f" at {list(comparison.index)}" if comparison.index else "")
    numeric = comparison.kind not in ("run", "structure") and math.isfinite(comparison.relative)
    kind = comparison.kind.replace("buffer ", "buffers ") if standing_for > 1 else comparison.kind
    plural = "" if kind != comparison.kind else "s"
    return (
        comparison.dtype,
        kind + (f"{plural}, worst of {standing_for}" if standing_for > 1 else ""),
        where,
        _figure(comparison.absolute) if numeric else "",
        _figure(comparison.relative) if numeric else "",
        _figure(comparison.allowed) if numeric else "",
        str(comparison.seed),
        "equal" if comparison.equal else "DIFFERENT",
    )


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"
