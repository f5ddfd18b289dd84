"""What a file must pass before it is written: our engine's values, from onnxruntime alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.engine.problem import Inputs

Array = np.ndarray[Any, Any]
# Above, differences have other reasons.
_ROUNDING = 1e-3
# Additivity of what is computed in one precision, relative to the size of the outputs.
_ADDITIVE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-11}


@dataclass(frozen=True)
class Compared:
    """How far a file was from the engine, and from adding up.

    Args:
        rows: the number of samples.
        difference: the largest difference of SHAP values, relative to the largest of the same output.
        additivity: the largest difference of a prediction and what adds up to it, relative to
            the larger of 1 and the prediction's size.

    """

    rows: int
    difference: float
    additivity: float


def compare(
    found: Sequence[Array], values: Sequence[Array], chosen: Tensor, rows: int, tolerance: float
) -> Compared:
    """Hold what a file gives against the engine.

    Args:
        found: prediction, values of each input, base value.
        values: the engine's, of each input.
        chosen: places of the outputs that are explained.
        rows: the number of samples.
        tolerance: largest difference, relative to the largest value of the same output.

    Raises:
        RewriteError: if they differ by more, or do not add up.

    """
    prediction, *given, base = found
    count = len(chosen)
    both = [
        (a.reshape(rows, -1, count).astype(float), b.reshape(rows, -1, count))
        for a, b in zip(given, values, strict=True)
    ]
    change = (prediction.reshape(rows, -1) - base.reshape(1, -1))[:, chosen.numpy()]
    scale = np.max([np.abs(b).max((0, 1)) for _, b in both] + [np.abs(change).max(0) / 100], axis=0)
    # Of an output that does not change, what rounding makes of its size is all that there is.
    eps = np.finfo(prediction.dtype).eps
    least = 10 * eps * np.abs(prediction.reshape(rows, -1)[:, chosen.numpy()]).max(0) / tolerance
    scale = np.maximum(np.maximum(scale, least), np.finfo(float).tiny)
    difference = max(float((np.abs(a - b).max((0, 1)) / scale).max()) for a, b in both)
    total = sum(a.sum(1) for a, _ in both)
    size = np.maximum(1, np.abs(prediction.reshape(rows, -1)[:, chosen.numpy()]))
    additivity = float((np.abs(total - change) / size).max())
    what = f"for a batch of {rows}"
    if not difference <= tolerance:
        raise RewriteError(
            "export_explainer_onnx: values from onnxruntime and from DeepExplainer differ by "
            f"{difference:.1e} (relative) {what}, more than tolerance={tolerance:.0e}; nothing was written: "
            f"{_advice(difference)}"
        )
    if not additivity <= _ADDITIVE.get(prediction.dtype, 1e-2):
        raise RewriteError(
            f"export_explainer_onnx: values from onnxruntime miss the prediction by {additivity:.1e} {what}; "
            "nothing was written"
        )
    return Compared(rows, difference, additivity)


def _advice(difference: float) -> str:
    if difference < _ROUNDING:
        return "if that is rounding to you, pass a larger tolerance"
    return "a graph fixes what the model's code decides by values or sizes"


def mixed_rows(background: Inputs, rows: int, contexts: Sequence[int]) -> Inputs:
    """Make samples of a background: each number is that of some row of it, contexts are whole rows'.

    Example:
        >>> mixed_rows([torch.tensor([[1.0, 2.0]])], 2, []).pop().shape
        torch.Size([2, 2])

    """
    draw = torch.Generator().manual_seed(rows)
    made = []
    for k, each in enumerate(background):
        count = len(each)
        if k in contexts or each.dim() == 1:
            made.append(each[torch.randint(count, (rows,), generator=draw)])
            continue
        of_row = torch.randint(count, (rows, *each.shape[1:]), generator=draw)
        sample = each.gather(0, of_row)
        if each.is_floating_point():
            spread = each.std(0, correction=0) if count > 1 else torch.zeros_like(each[0])
            noise = torch.rand(sample.shape, generator=draw, dtype=each.dtype)
            # Where all rows are the same there is nothing to mix.
            sample = torch.where(spread == 0, sample + noise, sample)
        made.append(sample)
    return made
