"""One sequence of an explanation, taken out of whatever a function was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.errors import RewriteError
from rewriter.plot.style import Array


@dataclass(frozen=True)
class OneSequence:
    """What is drawn of one sequence and one output.

    Args:
        values: attributions (T, F).
        names: of the F features.
        base: the expected value; None where none is known.
        data: the signal (T, F); None where it is not known or has no numbers of its own for each value.

    """

    values: Array
    names: tuple[str, ...]
    base: float | None
    data: Array | None

    @property
    def course(self) -> Array:
        """Base value and all that steps added so far, (T,): the last is the prediction."""
        return np.asarray((self.base or 0.0) + np.cumsum(self.values.sum(1)))

    def of_largest(self, count: int) -> tuple[Array, tuple[str, ...]]:
        """Return the features of the largest shares, and the others as one if there are more.

        Example:
            >>> sequence = OneSequence(np.array([[1.0, 5.0, 2.0]]), ("a", "b", "c"), None, None)
            >>> sequence.of_largest(2)
            (array([[5., 3.]]), ('b', 'other 2 features'))

        """
        if self.values.shape[1] <= count:
            return self.values, self.names
        order = np.argsort(-np.abs(self.values).sum(0), kind="stable")
        kept, rest = order[: count - 1], order[count - 1 :]
        values = np.column_stack([self.values[:, kept], self.values[:, rest].sum(1)])
        return values, (*(self.names[k] for k in kept), f"other {len(rest)} features")


def one_sequence(
    explanation: Any, sample: int = 0, output: int = 0, feature_names: Sequence[str] | None = None
) -> OneSequence:
    """Take one sequence and one output.

    Args:
        explanation: a ``shap.Explanation`` of sequences, or an array, of shape (T, F), (M, T, F) or
            (M, T, F, outputs); an explanation with several outputs may also be (T, F, outputs).
        sample: which of the M.
        output: which of the outputs.
        feature_names: of the F features.

    Raises:
        RewriteError: for another shape, an index beyond it, or names that do not fit.

    Example:
        >>> one_sequence(np.zeros((4, 5, 3))).names
        ('x0', 'x1', 'x2')

    """
    values, base, data = (_array(each) for each in _parts(explanation))
    assert values is not None
    several = _has_outputs(explanation, values, data)
    if values.ndim not in (2 + several, 3 + several):
        raise RewriteError(
            "explanation: expected values of shape (T, F), (M, T, F) or (M, T, F, outputs), got "
            f"{values.shape}; DeepExplainer(model, data) without feature_names keeps time and features apart "
            "(names are given here), and of more dimensions take the ones to draw"
        )
    if base is not None and base.size > 1 and base.shape != _expected_base(values, several=several):
        raise RewriteError(
            f"explanation: expected base values of shape {_expected_base(values, several=several)} beside "
            f"values of shape {values.shape}, got {base.shape}; of one output take explanation[..., k]"
        )
    if several:
        values = values[..., _checked("output", output, values.shape[-1])]
        base = base[..., output] if base is not None and base.ndim else base
    if values.ndim == 3:
        row = _checked("sample", sample, len(values))
        data = data[row] if data is not None and data.shape == values.shape else None
        base = base[row] if base is not None and base.ndim else base
        values = values[row]
    if not values.size:
        raise RewriteError(f"explanation: expected some steps and features, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise RewriteError("explanation: expected finite values, got NaN or infinity")
    return OneSequence(
        values.astype(float),
        _names(explanation, feature_names, values.shape[1]),
        None if base is None else float(base.reshape(-1)[0]),
        data.astype(float) if data is not None and data.shape == values.shape else None,
    )


def _parts(explanation: Any) -> tuple[Any, Any, Any]:
    if hasattr(explanation, "base_values"):
        return explanation.values, explanation.base_values, explanation.data
    return explanation, None, None


def _array(given: Any) -> Array | None:
    if given is None:
        return None
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    try:
        made = np.asarray(given)
    except ValueError as error:
        raise RewriteError(
            f"explanation: expected an array, got rows of different length ({error})"
        ) from None
    if made.dtype.kind not in "biuf":
        raise RewriteError(
            f"explanation: expected a shap.Explanation or an array of numbers, got {type(given).__name__}"
            f" of {made.dtype}"
        )
    return made


def _has_outputs(explanation: Any, values: Array, data: Array | None) -> bool:
    """Whether the last dimension is that of the outputs: shap lists as many names."""
    if data is not None and data.shape in (values.shape, values.shape[:-1]):
        return data.ndim < values.ndim
    names = getattr(explanation, "output_names", None)
    listed = names is not None and not isinstance(names, str) and len(names) == values.shape[-1]
    return listed or values.ndim == 4


def _expected_base(values: Array, *, several: bool) -> tuple[int, ...]:
    inner = values.ndim - 2 - several
    return (*values.shape[:inner], *values.shape[values.ndim - several :])


def _checked(name: str, index: int, count: int) -> int:
    if not -count <= index < count:
        raise RewriteError(f"{name}: expected 0 to {count - 1}, got {index}")
    return index


def _names(explanation: Any, given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    found = getattr(explanation, "feature_names", None) if given is None else given
    if given is None and (found is None or isinstance(found, str) or len(found) != count):
        return tuple(f"x{k}" for k in range(count))
    assert found is not None
    if isinstance(found, str) or len(found) != count:
        raise RewriteError(f"feature_names: expected {count} names, one per feature, got {found!r}")
    return tuple(map(str, found))
