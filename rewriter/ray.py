"""SHAP values of the batches of a Ray ``Dataset``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from passes.errors import RewriteError
from rewriter.engine.path.nearness import Nearer, Nearness
from rewriter.explainer.explainer import DeepExplainer
from rewriter.jobs.on_ray import ray_data
from rewriter.jobs.rows import Attributor as OfRows
from rewriter.jobs.tables import Array

__all__ = ["Attributor"]


class Attributor:
    """Explains batches of a ``Dataset``, as the actors of ``map_batches``.

    Args:
        model: the model, or a reference to it in the object store, where it is once for all actors.
        background: an array or a tensor of references, (N, *shape), or a reference to it.
        column: of the samples; models of several inputs are explained by jobs, see :mod:`rewriter.jobs`.
        device: where to explain, e.g. ``"cuda"`` with ``num_gpus=1``.
        threads: of a process; Ray gives an actor one unless ``num_cpus`` says more.
        nearer: blocks, segments and more, see :meth:`rewriter.DeepExplainer.shap_values`.
        **options: for :class:`rewriter.DeepExplainer`.

    Raises:
        MissingExtraError: if there is no Ray, saying how to get it.

    Example:
        A ``Dataset`` with a column ``x`` gets the columns ``values``, ``outputs``, ``base`` and ``error``::

            samples.map_batches(
                rewriter.ray.Attributor,
                fn_constructor_args=(ray.put(model), ray.put(background)),
                compute=ray.data.ActorPoolStrategy(size=8),
            )

    """

    def __init__(
        self,
        model: Any,
        background: Any,
        *,
        column: str = "x",
        device: str = "cpu",
        threads: int = 1,
        nearer: Nearer | None = None,
        **options: Any,
    ) -> None:
        ray = ray_data()
        torch.set_num_threads(threads)
        module, references = (
            ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in (model, background)
        )
        if not isinstance(module, nn.Module):
            raise RewriteError(f"model: expected an nn.Module, got {type(module).__name__}")
        # Options that cannot hold are told here, not for each row.
        Nearness.of(nearer or Nearer())
        explainer = DeepExplainer(module.to(device), np.asarray(references), progress=False, **options)
        (given,) = explainer._data
        self._column = column
        self._rows = OfRows(
            explainer, (column,), (given.dtype,), (tuple(given.shape[1:]),), nearer or Nearer()
        )

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Any]:
        """Return a batch with its values; a row without has NaN, and says why in ``error``.

        Raises:
            RewriteError: if the batch has no such column, or rows of another shape than the background's.

        """
        if self._column not in batch:
            raise RewriteError(f"{self._column}: no such column; got {', '.join(batch)}")
        column = batch[self._column]
        if not len(column):
            outputs = tuple(self._rows.explainer._output_shape)
            base = np.empty((0, *outputs))
            values = np.empty((0, *self._rows.shapes[0], *outputs))
            return {**batch, "values": values, "outputs": base, "base": base, "error": np.empty(0, str)}
        x = np.stack([*column])
        if x.shape[1:] != self._rows.shapes[0]:
            raise RewriteError(
                f"{self._column}: expected rows of shape {self._rows.shapes[0]}, as the background has them, "
                f"got {x.shape[1:]}"
            )
        rows = self._rows.explain(0, {self._column: x})
        return {
            **batch,
            "values": rows.values[self._column],
            "outputs": rows.outputs,
            "base": rows.base,
            "error": np.array([each or "" for each in rows.errors]),
        }
