"""Explain rows so that one that cannot be explained takes no other with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from passes.errors import RewriteError
from rewriter.engine.path.nearness import Nearer
from rewriter.explainer.explainer import DeepExplainer
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

        Raises:
            RewriteError: if not one of the rows can be explained, and all for one reason.

        """
        count = len(next(iter(arrays.values())))
        errors: list[str | None] = [None] * count
        for row, why in self._unreadable(arrays):
            errors[row] = errors[row] or why
        good = [row for row in range(count) if errors[row] is None]
        found: dict[int, _Row] = {}
        for row, each in self._explained(arrays, good):
            if isinstance(each, str):
                errors[row] = each
            else:
                found[row] = each
        return self._together(first, errors, found, arrays)

    def _unreadable(self, arrays: Mapping[str, Array]) -> Iterator[tuple[int, str]]:
        for name in self.names:
            array = arrays[name]
            if array.dtype.kind != "f":
                continue
            finite = np.isfinite(array).reshape(len(array), -1)
            for row in np.flatnonzero(~finite.all(1)):
                place = np.unravel_index(int(np.argmin(finite[row])), array.shape[1:] or (1,))
                value = array[row].reshape(-1)[np.argmin(finite[row])]
                yield int(row), f"{name}: {value} at {tuple(map(int, place))}: missing, infinite or no number"

    def _explained(self, arrays: Mapping[str, Array], rows: list[int]) -> Iterator[tuple[int, _Row | str]]:
        """Yield an explanation, or why there is none, for each row; halves where a batch has none."""
        if not rows:
            return
        try:
            done = self.explainer._explain(self.inputs(arrays, rows), None, "max", True, None, self.nearer)
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


@dataclass
class _Row:
    values: list[Array]
    outputs: Array
    base: Array
