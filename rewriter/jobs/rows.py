"""Explain rows so that one that cannot be explained takes no other with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from passes.errors import RewriteError
from rewriter.engine.path.nearness import Nearer
from rewriter.explainer.additivity import AdditivityError
from rewriter.explainer.explainer import DeepExplainer
from rewriter.explainer.result import Explained
from rewriter.jobs.parts import Rows
from rewriter.jobs.tables import Array


@dataclass
class Attributor:
    """Explains rows of named arrays by one explainer.

    Args:
        explainer: what explains them.
        names: of the inputs, in the order in which the model takes them.
        dtypes: of the inputs.
        shapes: of a row of each input.
        nearer: blocks, segments and more, see :meth:`rewriter.DeepExplainer.shap_values`.

    """

    explainer: DeepExplainer
    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    nearer: Nearer = field(default_factory=Nearer)

    def explain(self, first: int, arrays: Mapping[str, Array]) -> Rows:
        """Return explanations of rows.

        Args:
            first: the number of the first.
            arrays: by name, (rows, *shape).

        Returns:
            Explanations; a row that has none has an error, whatever the reason.

        """
        count = len(next(iter(arrays.values())))
        errors: list[str | None] = [None] * count
        for row, why in self._unreadable(arrays):
            errors[row] = errors[row] or why
        good = [row for row in range(count) if errors[row] is None]
        found: dict[int, _Row] = {}
        for row, each in self._explained(arrays, good):
            if isinstance(each, str):
                # It was explained by itself.
                errors[row] = re.sub(r"\b(row|sample) 0\b", f"row {first + row}", each)
            else:
                found[row] = each
        return self._together(first, errors, found, arrays)

    def check(self) -> None:
        """Explain one row of the background, by which an option that cannot hold shows before any other row.

        Raises:
            RewriteError: as :meth:`rewriter.DeepExplainer.shap_values`, but for what may be the row's own.

        """
        row = [each[:1] for each in self.explainer._data]
        try:
            self._values(row if len(row) > 1 else row[0])
        except AdditivityError:
            # Another row may do without the operation that has no rule.
            return

    def outputs(self) -> Array:
        """Return what the model gives for the background, (N, *outputs)."""
        found: Array = self.explainer._run(self.explainer._data).cpu().numpy()
        return found

    def _unreadable(self, arrays: Mapping[str, Array]) -> Iterator[tuple[int, str]]:
        for name, dtype in zip(self.names, self.dtypes, strict=True):
            array = arrays[name]
            for bad, why in _lost(array, torch.empty(0, dtype=dtype).numpy().dtype):
                flat = bad.reshape(len(array), -1)
                for row in np.flatnonzero(flat.any(1)):
                    if flat[row].size > 1 and np.isnan(array[row]).all():
                        yield int(row), f"{name}: no number in it: missing, damaged, or of another shape"
                        continue
                    first = int(np.argmax(flat[row]))
                    place = tuple(map(int, np.unravel_index(first, array.shape[1:] or (1,))))
                    yield int(row), f"{name}: {array[row].reshape(-1)[first]} at {place}: {why}"

    def _explained(self, arrays: Mapping[str, Array], rows: list[int]) -> Iterator[tuple[int, _Row | str]]:
        """Yield an explanation, or why there is none, for each row; halves where a batch has none."""
        if not rows:
            return
        try:
            done = self._values(self.inputs(arrays, rows))
        except RewriteError as error:
            if len(rows) == 1:
                yield rows[0], " ".join(str(error).split())
                return
            middle = len(rows) // 2
            yield from self._explained(arrays, rows[:middle])
            yield from self._explained(arrays, rows[middle:])
            return
        shape = self.explainer._output_shape
        outputs = done.outputs.reshape(len(rows), *shape)
        base = done.base.reshape(len(rows), *shape)
        for k, row in enumerate(rows):
            yield row, _Row([each[k] for each in done.values], outputs[k], base[k])

    def _values(self, x: Any) -> Explained:
        return self.explainer._explain(x, None, "max", True, None, self.nearer)

    def inputs(self, arrays: Mapping[str, Array], rows: list[int]) -> Any:
        """Return rows of arrays as the explainer takes them."""
        found = [
            torch.from_numpy(np.ascontiguousarray(arrays[name][rows])).to(dtype)
            for name, dtype in zip(self.names, self.dtypes, strict=True)
        ]
        return found if len(found) > 1 else found[0]

    def _together(
        self, first: int, errors: list[str | None], found: Mapping[int, _Row], arrays: Mapping[str, Array]
    ) -> Rows:
        shape = tuple(self.explainer._output_shape)
        missing = _Row(
            [np.full((*arrays[name].shape[1:], *shape), np.nan) for name in self.names],
            np.full(shape, np.nan),
            np.full(shape, np.nan),
        )
        rows = [found.get(row, missing) for row in range(len(errors))]
        values = {name: np.stack([row.values[k] for row in rows]) for k, name in enumerate(self.names)}
        return Rows(
            first,
            values,
            np.stack([row.outputs for row in rows]),
            np.stack([row.base for row in rows]),
            tuple(errors),
        )


def _lost(array: Array, dtype: np.dtype[Any]) -> Iterator[tuple[Array, str]]:
    """Yield where numbers are none, or are not kept by a dtype, and why."""
    if array.dtype.kind == "f":
        yield ~np.isfinite(array), "missing, infinite or no number"
    with np.errstate(invalid="ignore", over="ignore"):
        kept = array.astype(dtype)
    if dtype.kind == "f":
        yield ~np.isfinite(kept), f"too large for the background's {dtype}"
    else:
        yield kept != array, f"the background holds {dtype}, which this is not"


@dataclass
class _Row:
    values: list[Array]
    outputs: Array
    base: Array
