"""What a page shows of each sample: its numbers, and how they were proven."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.errors import RewriteError
from rewriter.compiler.report import Report
from rewriter.engine.path.nearness import Nearer
from rewriter.equivalence.provenance import hash_of_tensors, hash_of_weights, versions
from rewriter.explainer.arguments import samples_of
from rewriter.explainer.explainer import DeepExplainer
from rewriter.explainer.result import Explained

Array = np.ndarray[Any, Any]
# Digits that count: all of float32.
_DIGITS = 9
# Of the change of an output, what a sum may be off.
_ROUNDING = 1e-4
Labels = Sequence[str] | None


@dataclass(frozen=True)
class Grid:
    """What is shown of one input: rows by features.

    Args:
        rows: labels, of steps or tokens; a list for each sample if they differ.
        features: labels.
        values: shares (M, R, F, K).
        data: (M, R, F).

    """

    rows: list[str] | list[list[str]]
    features: list[str]
    values: Array
    data: Array


@dataclass(frozen=True)
class Shown:
    """All that a page shows.

    Args:
        grids: of each input.
        outputs: names of the K outputs.
        samples: names of the M samples.
        prediction: of the model's own code, (M, K).
        base: (M, K).
        proof: what was checked, and what was found.

    """

    grids: list[Grid]
    outputs: list[str]
    samples: list[str]
    prediction: Array
    base: Array
    proof: list[tuple[str, str]]

    def of_sample(self, m: int) -> str:
        """Return a sample as JSON."""
        inputs = [
            {
                "rows": grid.rows[m] if grid.rows and isinstance(grid.rows[0], list) else None,
                "data": _short(grid.data[m]),
                "values": [_short(grid.values[m, ..., k]) for k in range(len(self.outputs))],
            }
            for grid in self.grids
        ]
        whole = {
            "name": self.samples[m],
            "f": _short(self.prediction[m]),
            "base": _short(self.base[m]),
            "inputs": inputs,
        }
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _short(numbers: Array) -> list[float | None]:
    return [float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None for x in np.ravel(numbers).tolist()]


def shown(
    explainer: DeepExplainer,
    X: Any,
    *,
    feature_names: Labels = None,
    row_names: Any = None,
    sample_names: Labels = None,
    references: Any = None,
    nearer: Nearer | None = None,
) -> Shown:
    """Explain samples, and hold predictions and sums against the model's own code.

    Args:
        explainer: explains them.
        X: samples.
        feature_names: of the last dimension of an input, or all its elements.
        row_names: of the dimensions before; a list of them for each sample, if tokens differ.
        sample_names: of the samples.
        references: a background of its own for each sample.
        nearer: blocks, segments and more.

    Raises:
        AdditivityError: if shares do not sum to what they explain.
        RewriteError: for samples that do not fit, and names that are too many or too few.

    Example:
        >>> import torch
        >>> explainer = DeepExplainer(torch.nn.Linear(3, 1), torch.randn(5, 3))
        >>> shown(explainer, torch.randn(2, 3), feature_names=["a", "b", "c"]).grids[0].values.shape
        (2, 1, 3, 1)

    """
    nearer = nearer or Nearer()
    samples = samples_of(X, explainer._data, explainer._multi_input)
    if not len(samples[0]):
        raise RewriteError("X: expected samples to show, got none")
    done = explainer._explained_data(X, references, True, nearer)
    with explainer._full_precision():
        own = explainer._original.outputs(samples).flatten(1).double().cpu().numpy()
    count, outputs = len(own), explainer._output_shape
    names = explainer._names
    if feature_names is None:
        feature_names = names.features
    grids = _grids(done, outputs.numel(), feature_names, row_names)
    given = [f"sample {m}" for m in range(count)] if sample_names is None else list(map(str, sample_names))
    if len(given) != count:
        raise RewriteError(f"sample_names: expected {count} names, one per sample, got {len(given)}")
    several = names.of_outputs(outputs) if outputs.numel() > 1 or names.outputs else ["f(x)"]
    base = done.base.reshape(count, -1)
    return Shown(grids, several, given, own, base, _proof(explainer, done, own, references, nearer))


def _grids(done: Explained, count: int, features: Labels, row_names: Any) -> list[Grid]:
    # Lengths, masks and other integers are read beside what is explained.
    kept = [k for k, each in enumerate(done.data) if each.dtype.kind == "f" or done.values[k].any()]
    found = []
    for k in kept or [0]:
        data, values = done.data[k], done.values[k]
        shape = data.shape[1:]
        names = None if features is None else list(map(str, features))
        size = int(np.prod(shape))
        flat = len(shape) < 2 or (names is not None and len(names) == size != shape[-1])
        rows, last = (1, size) if flat else (size // max(1, shape[-1]), shape[-1])
        if names is not None and len(names) != last:
            raise RewriteError(
                f"feature_names: expected {last} names, one per feature, or {size}, one per element, got "
                f"{len(names)}"
            )
        made = values.reshape(len(data), rows, last, count)
        labels = _rows(row_names, len(data), [""] if flat else _places(shape[:-1]))
        features_of = names or [f"x{i}" for i in range(last)]
        found.append(Grid(labels, features_of, made, data.reshape(len(data), rows, last)))
    return found


def _places(shape: tuple[int, ...]) -> list[str]:
    return [",".join(map(str, index)) for index in np.ndindex(*shape)]


def _rows(given: Any, samples: int, own: list[str]) -> Any:
    if given is None:
        return own
    rows = list(given)
    if all(isinstance(each, str) for each in rows):
        if len(rows) != len(own):
            raise RewriteError(f"row_names: expected {len(own)} names, one per row, got {len(rows)}")
        return rows
    if len(rows) != samples or any(len(each) > len(own) for each in rows):
        raise RewriteError(
            f"row_names: expected {len(own)} names, or at most as many for each of {samples} samples"
        )
    return [[*map(str, each), *[""] * (len(own) - len(each))] for each in rows]


def _proof(
    explainer: DeepExplainer, done: Explained, own: Array, references: Any, nearer: Nearer
) -> list[tuple[str, str]]:
    count = len(own)
    sums = sum(each.reshape(count, -1, own.shape[1]).sum(1) for each in done.values)
    gap = np.abs(done.base.reshape(own.shape) + sums - own)
    change = np.abs(own - done.base.reshape(own.shape)).max() or 1.0
    # Beyond rounding there is only what goes around a layer: all else has raised AdditivityError.
    around = explainer._cut is not None and gap.max() > _ROUNDING * change
    rewritten = explainer._target.rewritten
    proven = Report.of(rewritten).proven if rewritten is not None else None
    differs = np.abs(done.outputs.reshape(own.shape) - own).max()
    found = [
        (
            "Base value and shares sum to the prediction of the model's own code",
            f"largest gap {gap.max():.1e}, {gap.max() / change:.1e} of the largest change"
            + (", which goes around the explained layer" if around else ""),
        ),
        (
            "The rewritten model gives what the model's own code gives",
            f"largest difference {differs:.1e} on these samples",
        ),
    ]
    if proven:
        found.append(("Outputs and gradients before", str(proven)))
    own_references = "of their own" if references is not None else str(len(explainer._data[0]))
    options = ", ".join(f"{name}={value!r}" for name, value in nearer.items()) or "none: DeepSHAP"
    found += [
        ("References", own_references),
        ("Nearer to Shapley values by", options),
        ("Recurrences ran by", explainer.backend),
        ("Model", type(explainer._asked.model).__name__),
        ("Weights", hash_of_weights(explainer._asked.model)),
        ("Background", hash_of_tensors((str(k), each) for k, each in enumerate(explainer._data))),
    ]
    return found + [(f"Version of {name}", version) for name, version in versions().items()]
