"""``DeepExplainer``: the face of ``shap.DeepExplainer``, the linked runs behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter._additivity import check_sums
from rewriter._attribution import Inputs, Remembered, attribute
from rewriter._explained import Explained, Names, collect
from rewriter._inputs import as_inputs, check_like
from rewriter._interim import linked_target

Array = np.ndarray[Any, Any]
Order = Literal["max", "min", "max_abs"]
# Rows of a run without attributions.
_ROWS = 256


class DeepExplainer:
    """Exact DeepSHAP for any recurrent model: additive to rounding, batched, without hooks.

    Takes the place of ``shap.DeepExplainer``: the arguments, the methods and the shapes of the results
    are the same, and so are the values on ``rewriter.decompose(model)``, which this class calls itself.
    The model is never touched. One explainer may be used by any number of threads.

    Args:
        model: any module; or ``(model, layer)`` to explain the inputs of one of its modules.
        data: background samples, one tensor or a list with one per input of the model.
        output: which part of what the model returns is explained: a key or index, or a function of it.
            The part must have the batch in dimension 0; it may have any shape beyond that.
        feature_names: names of the last dimension of the input, or of all its elements.
        output_names: names of the outputs.
        max_memory: bytes to work in, beside inputs and results; a quarter of what is free by default.
        progress: show a bar (if tqdm is installed) for work that takes more than a few seconds.

    Raises:
        RewriteError: if a part of the model cannot be rewritten, or the data do not run.

    Example:
        >>> class Last(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gru, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.gru(x)[0][:, -1])
        >>> model = Last()
        >>> explainer = DeepExplainer(model, torch.randn(10, 5, 3))
        >>> x = torch.randn(4, 5, 3)
        >>> values = explainer.shap_values(x)
        >>> values.shape
        (4, 5, 3, 2)
        >>> f = model(x).detach().numpy() - explainer.expected_value
        >>> bool(abs(values.sum((1, 2)) - f).max() < 1e-6)
        True

    """

    def __init__(
        self,
        model: nn.Module | tuple[nn.Module, nn.Module],
        data: Any,
        *,
        output: Callable[[Any], Tensor] | str | int | None = None,
        feature_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        max_memory: int | None = None,
        progress: bool = True,
    ) -> None:
        with torch.inference_mode(False):
            self._target = linked_target(model, output)
        like = next(self._target.model.parameters(), None)
        self._multi_input = isinstance(data, list | tuple)
        self._data = as_inputs(data, like, "background")
        if not self._data or 0 in self._data[0].shape:
            raise RewriteError("background: expected at least one sample, got none")
        check_like(self._data, self._data, "background")
        self._names = Names(feature_names, output_names)
        self._max_memory = max_memory
        self._progress = progress
        self._remembered = Remembered()
        outputs = self._run(self._data)
        self._output_shape = outputs.shape[1:]
        #: The mean of the outputs over the background, one per output.
        self.expected_value: Array = outputs.mean(0).cpu().numpy()

    def shap_values(
        self,
        X: Any,
        ranked_outputs: int | None = None,
        output_rank_order: Order = "max",
        check_additivity: bool | float = True,
        *,
        references: Any = None,
    ) -> Any:
        """Return the SHAP values of ``X``.

        Args:
            X: samples, one tensor, or a list if the background is one.
            ranked_outputs: explain only that many of each sample's outputs, the first in the order.
            output_rank_order: ``"max"``, ``"min"`` or ``"max_abs"``.
            check_additivity: whether the values must sum to the difference of the outputs; a number is
                the tolerance relative to the largest output, 1e-4 by default.
            references: a background of its own for each sample, (M, N, *shape).

        Returns:
            An array (M, *shape, *output shape), a list of them for several inputs, one per input; with
            ``ranked_outputs`` a pair of that, outputs in the last dimension, and the indices (M, ranked).

        Raises:
            AdditivityError: naming the first operation of the model that has no exact rule.
            RewriteError: for inputs that do not fit the background or are not finite.

        """
        done = self._explain(X, ranked_outputs, output_rank_order, check_additivity, references)
        values = done.values if self._multi_input else done.values[0]
        return values if ranked_outputs is None else (values, done.chosen)

    def __call__(self, X: Any, *, references: Any = None, check_additivity: bool | float = True) -> Any:
        """Return a ``shap.Explanation`` for ``shap.plots``, with named features flattened to one dimension.

        Its values are (M, features) for a model with one output, else (M, features, outputs), of which
        ``explanation[..., k]`` is what most plots take. See :meth:`shap_values` for the arguments.
        """
        return self._names.explanation(
            self._explain(X, None, "max", check_additivity, references), self._output_shape
        )

    def stream(self, batches: Iterable[Any], *, check_additivity: bool | float = True) -> Iterator[Any]:
        """Yield a ``shap.Explanation`` for each batch of samples, for data that exceed the memory.

        Example:
            >>> import pytest; _ = pytest.importorskip("shap")
            >>> explainer = DeepExplainer(nn.Linear(3, 1), torch.randn(10, 3))
            >>> [part.shape for part in explainer.stream(torch.randn(5, 3).split(2))]
            [(2, 3), (2, 3), (1, 3)]

        """
        for batch in batches:
            yield self(batch, check_additivity=check_additivity)

    def _explain(
        self,
        X: Any,
        ranked: int | None,
        order: Order,
        check_additivity: bool | float,
        references: Any,
    ) -> Explained:
        if isinstance(X, list | tuple) != self._multi_input:
            wanted = f"a list of {len(self._data)} tensors" if self._multi_input else "one tensor"
            raise RewriteError(f"X: expected {wanted} like the background, got {type(X).__name__}")
        samples = as_inputs(X, self._data[0], "X")
        check_like(samples, self._data, "X")
        own = references is not None
        background = as_inputs(references, self._data[0], "references") if own else self._data
        if own:
            check_like(background, self._data, "references", samples=samples[0].shape[0])
        chosen = self._choose(samples, ranked, order)
        parts = attribute(
            self._target,
            samples,
            background,
            chosen,
            own=own,
            max_memory=self._max_memory,
            remembered=self._remembered,
        )
        tail = tuple(self._output_shape) if ranked is None else (chosen.shape[1],)
        pairs = samples[0].shape[0] * background[0].shape[int(own)]
        done = collect(parts, samples, background, chosen, tail, pairs if self._progress else 0, own=own)
        if check_additivity is not False:
            tolerance = 1e-4 if check_additivity is True else float(check_additivity)
            check_sums(self._target, done, samples, background, tolerance)
        return done

    def _choose(self, samples: Inputs, ranked: int | None, order: Order) -> Tensor:
        """Return the indices (M, K) of the outputs to explain."""
        rows, count = samples[0].shape[0], self._output_shape.numel()
        if ranked is None or count == 1:
            return torch.arange(count).expand(rows, count).int()
        if order not in ("max", "min", "max_abs"):
            raise RewriteError(f"output_rank_order: expected 'max', 'min' or 'max_abs', got {order!r}")
        if not ranked >= 1:
            raise RewriteError(f"ranked_outputs: expected at least 1, got {ranked}")
        if rows == 0:
            return torch.empty(0, min(ranked, count), dtype=torch.long)
        outputs = self._run(samples).flatten(1)
        values = outputs.abs() if order == "max_abs" else outputs
        return values.sort(descending=order != "min")[1][:, :ranked].cpu()

    def _run(self, inputs: Inputs) -> Tensor:
        """Return the outputs of the model, without attributions."""
        with torch.no_grad():
            parts = [
                self._target.run(list(rows))
                for rows in zip(*(torch.split(x, 256) for x in inputs), strict=True)
            ]
        return torch.cat(parts)
