"""The result of an explanation, and its form as ``shap.Explanation``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.engine.attribution import Part
from rewriter.engine.problem import Problem
from rewriter.extras import optional

Array = np.ndarray[Any, Any]
# Seconds after which a progress bar appears.
_LONG = 3


@dataclass(frozen=True)
class Explained:
    """Attributions of all samples.

    Args:
        values: per input (M, *shape, *outputs), float64.
        data: per input (M, *shape), what the values belong to.
        outputs: (M, all outputs).
        base: the mean over the references, (M, all outputs).
        chosen: (M, K) indices of the outputs that are explained.
        multipliers: as ``values``, their mean over the references, if they are asked for.
        errors: as ``values``, their standard errors, where several orders were drawn.

    """

    values: list[Array]
    data: list[Array]
    outputs: Array
    base: Array
    chosen: Tensor
    multipliers: list[Array]
    errors: list[Array] = field(default_factory=list)


def collect(
    parts: Iterable[Part], problem: Problem, tail: tuple[int, ...], *, progress: bool = False
) -> Explained:
    """Put the tiles together.

    Args:
        parts: what :func:`rewriter.engine.attribution.attribute` yields.
        problem: what they solve.
        tail: shape of the outputs in the result.
        progress: show a bar.

    """
    rows = problem.rows
    values: list[Array] = []
    outputs = base = np.zeros((rows, problem.outputs))
    attributions, slopes = len(problem.samples), len(problem.samples) * problem.multipliers
    for part in _with_progress(parts, rows * problem.count if progress else 0):
        found = [*part.sums, *part.multipliers, *part.variances]
        if not values:
            attributions, slopes = len(part.sums), len(part.multipliers)
            values = [np.zeros((rows, *each.shape[2:], problem.outputs)) for each in found]
            outputs = np.zeros((rows, part.outputs.shape[1]))
            base = np.zeros_like(outputs)
        here = slice(part.begin, part.end)
        for total, each in zip(values, found, strict=True):
            total[here] += each.movedim(0, -1).cpu().numpy()
        outputs[here] = part.outputs.double().cpu().numpy()
        base[here] += part.base.double().cpu().numpy()
    if not values:
        inputs = problem.samples * (1 + problem.multipliers)
        values = [np.zeros((rows, *each.shape[1:], problem.outputs)) for each in inputs]
    for total in values[attributions + slopes :]:
        np.sqrt(total, out=total)
    for total in values:
        total /= problem.count
    shaped = [each.reshape(*each.shape[:-1], *tail) for each in values]
    data = [each.cpu().numpy() for each in problem.samples]
    base /= problem.count
    multipliers = shaped[attributions : attributions + slopes]
    errors = shaped[attributions + slopes :]
    return Explained(shaped[:attributions], data, outputs, base, problem.chosen, multipliers, errors)


def _with_progress(parts: Iterable[Part], total: int) -> Iterator[Part]:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        total = 0
    if not total:
        yield from parts
        return
    with tqdm(total=total, unit="pair", delay=_LONG, leave=False) as bar:
        for part in parts:
            yield part
            bar.update(part.pairs)


@dataclass(frozen=True)
class Names:
    """Names of features and outputs.

    Args:
        features: of the last dimension of the input, or of all its elements, or None.
        outputs: of all outputs, or None.

    """

    features: Sequence[str] | None = None
    outputs: Sequence[str] | None = None

    def explanation(self, done: Explained, output_shape: torch.Size) -> Any:
        """Return a ``shap.Explanation`` in the shapes of stock shap, outputs in one dimension, the last.

        Its names are those of one dimension: names of features, and several inputs, which it has no room for
        else, have all features put into one.

        Raises:
            MissingExtraError: if shap is not installed.
            RewriteError: if the number of names fits neither the elements nor the last dimension.

        """
        shap = optional("shap", "explainer(x)", "shap")
        rows, count = len(done.data[0]), output_shape.numel()
        shapes = [each.shape[1:] for each in done.data]
        flat = len(shapes) > 1 or len(shapes[0]) < 2 or self.features is not None
        shapes = [(int(np.prod(shape)),) for shape in shapes] if flat else shapes
        data = [each.reshape(rows, *shape) for each, shape in zip(done.data, shapes, strict=True)]

        def together(parts: Sequence[Array]) -> Array:
            shaped = [each.reshape(rows, *shape, count) for each, shape in zip(parts, shapes, strict=True)]
            whole = np.concatenate(shaped, 1)
            return whole[..., 0] if count == 1 else whole

        return shap.Explanation(
            values=together(done.values),
            base_values=done.base.reshape(rows) if count == 1 else done.base,
            data=np.concatenate(data, 1),
            error_std=together(done.errors) if done.errors else None,
            feature_names=self.of_features([each.shape[1:] for each in done.data]) if flat else None,
            output_names=None if count == 1 else self.of_outputs(output_shape),
        )

    def of_features(self, shapes: Sequence[tuple[int, ...]]) -> list[str]:
        """Name every element of every input.

        Raises:
            RewriteError: if the number of names fits neither the elements nor the last dimension.

        Example:
            >>> Names(["hum", "temp"]).of_features([(2, 2)])
            ['t0 hum', 't0 temp', 't1 hum', 't1 temp']
            >>> Names().of_features([(2,), (1,)])
            ['input0 x0', 'input0 x1', 'input1 x0']

        """
        sizes = [int(np.prod(shape)) for shape in shapes]
        if self.features is not None and len(self.features) == sum(sizes):
            return list(self.features)
        names = []
        for k, shape in enumerate(shapes):
            last = shape[-1] if shape else 1
            if self.features is not None and len(self.features) != last:
                raise RewriteError(
                    f"feature_names: expected {last} names, one per feature, or {sum(sizes)}, one per "
                    f"element, got {len(self.features)}"
                )
            prefix = f"input{k} " if len(shapes) > 1 else ""
            for index in np.ndindex(*shape):
                own = (
                    self.features[index[-1]] if self.features is not None else f"x{index[-1] if index else 0}"
                )
                place = "t" + ",".join(str(i) for i in index[:-1]) + " " if len(index) > 1 else ""
                names.append(f"{prefix}{place}{own}")
        return names

    def of_outputs(self, shape: torch.Size) -> list[str]:
        """Name every output.

        Example:
            >>> Names().of_outputs(torch.Size([2]))
            ['output 0', 'output 1']

        """
        if self.outputs is not None and len(self.outputs) == shape.numel():
            return list(self.outputs)
        if self.outputs is not None:
            raise RewriteError(f"output_names: expected {shape.numel()} names, got {len(self.outputs)}")
        return [f"output {','.join(map(str, index))}" for index in np.ndindex(*shape)]
