"""How much explanations depend on their references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from passes.errors import InputError
from rewriter.compiler.report import render_table
from rewriter.explainer.arguments import samples_of
from rewriter.explainer.explainer import DeepExplainer
from rewriter.inputs import as_inputs

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReferenceReport:
    """What several sets of references make of the same samples.

    Args:
        values: the attributions by each set, in the form of ``shap_values``.
        errors: of the same form, how much they hang on which references the set has: the jackknife's
            standard error (Tukey 1958), from leaving out one after the other; nan for a single reference.
            It is one of the draw where references are drawn, and of medoids a measure of their spread.
        numbers: how many references each set has.
        by_sample: the values once more, (M, elements of all inputs, outputs).
        errors_by_sample: likewise.

    """

    values: dict[str, Any]
    errors: dict[str, Any]
    numbers: dict[str, int]
    by_sample: dict[str, Array]
    errors_by_sample: dict[str, Array]

    def draw(self, name: str) -> float:
        """Return the errors of a set over its values, sums of absolute numbers; nan for one reference."""
        return float(self.errors_by_sample[name].sum() / _size(self.by_sample[name]))

    def distance(self, a: str, b: str) -> float:
        """Return the difference of values by two sets over their mean size: 0 if equal, at most 2."""
        missing = [name for name in (a, b) if name not in self.by_sample]
        if missing:
            raise InputError(f"expected one of {', '.join(self.by_sample)}, got {missing[0]}")
        one, other = self.by_sample[a], self.by_sample[b]
        return float(np.abs(one - other).sum() / ((_size(one) + _size(other)) / 2))

    def same_largest(self, a: str, b: str) -> float:
        """Return in which share of samples and outputs the element of the largest value is the same."""
        largest = [np.abs(self.by_sample[name]).argmax(1) for name in (a, b)]
        return float((largest[0] == largest[1]).mean())

    @property
    def dependence(self) -> float:
        """The largest distance between two of the sets."""
        return max((self.distance(a, b) for a, b in combinations(self.values, 2)), default=0.0)

    @property
    def same_sign(self) -> Array:
        """Which values (M, elements of all inputs, outputs) have one sign by all sets, beyond two errors."""
        lower, upper = [], []
        for name, values in self.by_sample.items():
            error = 2 * np.nan_to_num(self.errors_by_sample[name])
            lower.append(values - error)
            upper.append(values + error)
        found: Array = (np.min(lower, 0) > 0) | (np.max(upper, 0) < 0)
        return found

    def __str__(self) -> str:
        names = list(self.values)
        header = ("references", "number", "sum", "draw", *names)
        rows = []
        for a in names:
            cells = [
                "-" if a == b else f"{self.distance(a, b):.2f} ({self.same_largest(a, b):.0%})" for b in names
            ]
            # Values sum to f(x) - mean f(references).
            change = np.abs(self.by_sample[a].sum(1)).mean()
            drawn = "-" if self.numbers[a] == 1 else f"{self.draw(a):.2f}"
            rows.append((a, str(self.numbers[a]), f"{change:.3g}", drawn, *cells))
        notes = [
            "",
            "sum: what values add up to, absolute, the mean. draw: how much they hang on which references a",
            "set has. Then distances between sets, over their size, and how often the largest is the same.",
            f"{self.same_sign.mean():.0%} of the values have one sign whatever the references.",
        ]
        return "\n".join([render_table(header, rows), *notes])


def compare_references(
    explainer: DeepExplainer,
    X: Any,
    references: Mapping[str, Any],
    *,
    check_additivity: bool | float = True,
) -> ReferenceReport:
    """Measure how much explanations depend on the references.

    Args:
        explainer: of the model.
        X: samples, as for ``explainer.shap_values``.
        references: sets of them by name, each what ``shap_values(x, references=...)`` takes, as
            :func:`propose_references` returns; or (N, *shape), the same for all samples.
        check_additivity: as for ``shap_values``.

    Raises:
        InputError: if there are no samples or no references.
        RewriteError: as ``shap_values``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from rewriter import propose_references
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
        >>> data, x = torch.randn(20, 3, 2), torch.randn(2, 3, 2)
        >>> sets = propose_references(data, 4) | {"zeros": torch.zeros(1, 3, 2)}
        >>> report = compare_references(DeepExplainer(linear, data), x, sets)
        >>> report.values["zeros"].shape, report.numbers["permuted"]
        ((2, 3, 2, 1), 4)
        >>> 0 < report.distance("medoids", "zeros") < 2
        True

    """
    several = isinstance(X, list | tuple)
    samples = samples_of(X, explainer._data, explainer._multi_input)
    if not samples or not len(samples[0]):
        raise InputError("X: expected at least one sample, got none")
    if not isinstance(references, Mapping):
        raise InputError(f"references: expected sets by name, a dict, got {type(references).__name__}")
    if not references:
        raise InputError("references: expected at least one set, by name, got none")
    outputs = np.shape(explainer.expected_value)
    report = ReferenceReport({}, {}, {}, {}, {})
    for name, given in references.items():
        found, count = _of_each(explainer, samples, given, several, f"references[{name!r}]", check_additivity)
        rows = len(samples[0])
        apart = [each.reshape(rows, count, *each.shape[1:]) for each in found]
        means = [each.mean(1) for each in apart]
        with np.errstate(invalid="ignore", divide="ignore"):
            # Leaving one out moves a mean by its distance over n - 1.
            errors = [
                np.sqrt(
                    np.square(each - each.mean(1, keepdims=True)).sum(1) / np.float64(count * (count - 1))
                )
                for each in apart
            ]
        report.numbers[name] = count
        for kept, flat, parts in (
            (report.values, report.by_sample, means),
            (report.errors, report.errors_by_sample, errors),
        ):
            kept[name] = parts[0] if len(parts) == 1 else parts
            flat[name] = np.concatenate(
                [each.reshape(rows, -1, int(np.prod(outputs, dtype=int))) for each in parts], 1
            )
    return report


def _of_each(
    explainer: DeepExplainer,
    samples: list[Tensor],
    given: Any,
    several: bool,
    what: str,
    check_additivity: bool | float,
) -> tuple[list[Array], int]:
    """Return values by each reference alone, rows of M times N, and N."""
    if callable(given):
        copies = [each.clone() for each in samples]
        given = given(copies if several else copies[0])
    parts = as_inputs(given, samples, what)
    rows = len(samples[0])
    sets = []
    for k, (each, sample) in enumerate(zip(parts, samples, strict=True)):
        of_all = each.dim() == sample.dim() and each.shape[1:] == sample.shape[1:]
        whole = each.unsqueeze(0).expand(rows, *each.shape) if of_all else each
        if whole.dim() < 2 or whole.shape[2:] != sample.shape[1:] or len(whole) != rows or not whole.shape[1]:
            raise InputError(
                f"{what}, input {k}: expected references (N, *shape) of all samples or (M, N, *shape) of "
                f"each of {rows} samples of shape {tuple(sample.shape[1:])}, got {tuple(each.shape)}"
            )
        sets.append(whole)
    if len({each.shape[1] for each in sets}) > 1:
        raise InputError(
            f"{what}: expected as many references for each of {len(samples)} inputs, got "
            f"{[tuple(each.shape) for each in parts]}"
        )
    count = sets[0].shape[1]
    pairs = [each.flatten(0, 1).unsqueeze(1) for each in sets]
    repeated = [each.repeat_interleave(count, 0) for each in samples]
    values = explainer.shap_values(
        repeated if several else repeated[0],
        references=pairs if several else pairs[0],
        check_additivity=check_additivity,
    )
    return values if isinstance(values, list) else [values], count


def _size(values: Array) -> float:
    # Where nothing has a value nothing differs.
    return float(np.abs(values).sum()) or 1.0
