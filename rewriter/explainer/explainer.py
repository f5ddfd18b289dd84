"""``DeepExplainer``: the face of ``shap.DeepExplainer``, the linked runs behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from passes.user_code.twin import Twin
from rewriter.compiler.first_calls import prove_first
from rewriter.compiler.proof import default_dtype
from rewriter.engine.attribution import attribute
from rewriter.engine.contexts import context_inputs
from rewriter.engine.path.along import attribute_along
from rewriter.engine.path.nearness import Nearer, Nearness
from rewriter.engine.path.points import Path
from rewriter.engine.path.through import Through, through
from rewriter.engine.problem import Problem
from rewriter.engine.sweeps.backend import chosen_backend
from rewriter.engine.sweeps.library import Compiled, compiling
from rewriter.engine.sweeps.two_players.asked import cells_by, check_cells
from rewriter.explainer.additivity import check_sums
from rewriter.explainer.arguments import (
    Order,
    background_of,
    bytes_of,
    chosen_outputs,
    example_of,
    references_for,
    refuse_integers,
    refuse_tensorflows,
    samples_of,
    tolerance_of,
    widened,
)
from rewriter.explainer.contexts import explained_as_read
from rewriter.explainer.result import Explained, Names, collect
from rewriter.explainer.suspects import telling_why
from rewriter.explainer.target import Asked, Output, Subject
from rewriter.inputs import Model, as_inputs

Array = np.ndarray[Any, Any]


class DeepExplainer(Subject):
    """Exact DeepSHAP for any recurrent model: additive to rounding, batched, without hooks.

    Takes the place of ``shap.DeepExplainer``: the arguments, the methods and the shapes of the results
    are the same, and so are the values on ``rewriter.decompose(model)``, which this class calls itself.
    The model is never touched. One explainer may be used by any number of threads.

    Args:
        model: any module; or ``(model, layer)`` to explain the input of one of its modules, whichever; of
            an ``nn.Embedding`` the output.
        data: background samples, one tensor, array or data frame, or a list with one per input of the model.
        session: belongs to TensorFlow 1 and has to be None, as in ``shap.DeepExplainer`` for PyTorch.
        learning_phase_flags: likewise.
        output: which part of what the model returns is explained: a key or index, or a function of it;
            or ``(layer, neuron)`` for what one of its modules gives: ``neuron`` is the place in a row, an
            index or a tuple, a function of the layer's (first) output, or None for all of it.
            The part must have the batch in dimension 0; it may have any shape beyond that.
        attribute_to_layer_input: with ``(model, layer)``; False to explain the layer's output instead.
        feature_names: names of all elements of the input, or of its last dimension, to have them in one
            dimension of an explanation (see :meth:`__call__`); the columns of a data frame by default.
        output_names: names of the outputs.
        max_memory: bytes to work in, beside inputs and results; a quarter of what is free by default.
        progress: show a bar (if tqdm is installed) for work that takes more than a few seconds.
        compiled: run the steps of LSTM and GRU in C on the CPU, not by torch's operations, which compute the
            same; ``"build"`` to have the library built where it is missing. See ``explainer.backend``.

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
        model: Model | tuple[nn.Module, nn.Module],
        data: Any,
        session: None = None,
        learning_phase_flags: None = None,
        *,
        output: Output = None,
        attribute_to_layer_input: bool = True,
        feature_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        max_memory: int | None = None,
        progress: bool = True,
        compiled: Compiled = True,
    ) -> None:
        refuse_tensorflows(session=session, learning_phase_flags=learning_phase_flags)
        asked = Asked.of(model, output, attribute_to_layer_input)
        super().__init__(asked, example_of(data, asked.model))
        self._multi_input = isinstance(data, list | tuple)
        self._data = background_of(data, self._target.model)
        if feature_names is None and hasattr(data, "columns"):
            feature_names = [str(name) for name in data.columns]
        self._names = Names(feature_names, output_names)
        self._max_memory, self._progress = bytes_of(max_memory), progress
        prove_first(self._asked.model, self._data)
        outputs = self._settle()
        floats = [each.dtype for each in self._data if each.is_floating_point()]
        self._wide = all(each == torch.float64 for each in (*floats, outputs.dtype))
        #: What runs the steps of recurrences: "C", or "torch" for torch's operations.
        self.backend, self._compiled = chosen_backend(self._target.model, compiled, stacklevel=2)

    def shap_values(
        self,
        X: Any,
        ranked_outputs: int | None = None,
        output_rank_order: Order = "max",
        check_additivity: bool | float = True,
        *,
        references: Any = None,
        **nearer: Unpack[Nearer],
    ) -> Any:
        """Return the SHAP values of ``X``.

        Args:
            X: samples, one tensor, or a list if the background is one.
            ranked_outputs: explain only that many of each sample's outputs, the first in the order.
            output_rank_order: ``"max"``, ``"min"`` or ``"max_abs"``.
            check_additivity: whether the values must sum to the difference of the outputs; a float is
                the tolerance relative to each output's own change from its mean over the background, by
                default 1e-4 in float32 and 1e-8 in float64. What float32 leaves beyond that is judged in
                float64, where it is gone if it was rounding.
            references: a background of its own for each sample, (M, N, *shape), a list of them for several
                inputs; or a function that makes it of the samples, which it gets as tensors.
            **nearer: cells, blocks, segments, draws, seed, groups and accuracy, which bring the values nearer
                to Shapley values for more time, see :class:`rewriter.engine.path.nearness.Nearness`.

        Returns:
            An array (M, *shape, *output shape), a list of them for several inputs, one per input; with
            ``ranked_outputs`` a pair of that, outputs in the last dimension, and the indices (M, ranked).
            With ``(model, layer)`` they belong to what the layer takes or gives, its batch brought to
            dimension 0, and are a list if that is several tensors. They sum to the change of the output
            unless something goes around the layer, as in a residual connection.

        Raises:
            AdditivityError: naming the first operation of the model that has no exact rule.
            RewriteError: for inputs that do not fit the background or are not finite.

        """
        done = self._explain(X, ranked_outputs, output_rank_order, check_additivity, references, nearer)
        return self._returned(done.values, None if ranked_outputs is None else done.chosen)

    def multipliers(
        self,
        X: Any,
        ranked_outputs: int | None = None,
        output_rank_order: Order = "max",
        check_additivity: bool | float = True,
        *,
        references: Any = None,
        **nearer: Unpack[Nearer],
    ) -> Any:
        """Return the multipliers of ``X``, their mean over the background.

        They are what SHAP values are made of: with one reference x0 the value is multiplier · (x - x0); along
        a path, the mean of an input's multipliers over those of its pieces in which that input moves.
        They say how much an output changes per unit of an input, as with captum's
        ``multiply_by_inputs=False``, and do not add up by themselves; what is checked are the SHAP values
        that they make. The arguments, and the shapes of what is returned, are those of :meth:`shap_values`.
        Lengths, masks and other integers have none: 0.

        Raises:
            AdditivityError: naming the first operation of the model that has no exact rule.
            RewriteError: as :meth:`shap_values`, and for a model of integers alone.

        Example:
            >>> linear = nn.Linear(3, 1)
            >>> explainer = DeepExplainer(linear, torch.randn(5, 3))
            >>> np.allclose(explainer.multipliers(torch.randn(2, 3))[..., 0], linear.weight.detach())
            True

        """
        if self._cut is None:
            refuse_integers(self._data)
        done = self._explain(
            X, ranked_outputs, output_rank_order, check_additivity, references, nearer, multipliers=True
        )
        return self._returned(done.multipliers, None if ranked_outputs is None else done.chosen)

    def _returned(self, values: list[Array], chosen: Tensor | None) -> Any:
        several = len(values) > 1 if self._cut else self._multi_input
        found = values if several else values[0]
        return found if chosen is None else (found, chosen)

    def __call__(
        self,
        X: Any,
        *,
        references: Any = None,
        check_additivity: bool | float = True,
        **nearer: Unpack[Nearer],
    ) -> Any:
        """Return a ``shap.Explanation`` for ``shap.plots``, in the shapes of stock shap.

        Its values are (M, *shape) for a model with one output, else (M, *shape, outputs), of which
        ``explanation[..., k]`` is what most plots take; the data are (M, *shape). shap has names for one
        dimension only: where ``feature_names`` are given, and for several inputs, all features are in one,
        (M, features) and (M, features, outputs). With several draws it has the standard errors of the
        values as ``error_std``. See :meth:`shap_values` for the arguments.

        Example:
            >>> import pytest; _ = pytest.importorskip("shap")
            >>> model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.randn(3, 1, 8, 8)
            >>> DeepExplainer(model, images)(images).shape
            (3, 1, 8, 8, 2)

        """
        done = self._explained_data(X, references, check_additivity, nearer)
        return self._names.explanation(done, self._output_shape)

    def _explained_data(
        self, X: Any, references: Any, check_additivity: bool | float, nearer: Nearer
    ) -> Explained:
        """Explain all outputs; the data are what the values belong to, also if that is a layer's."""
        done = self._explain(X, None, "max", check_additivity, references, nearer)
        if self._cut is None:
            return done
        with self._full_precision():
            data = self._cut.rows_of(self._target, as_inputs(X, self._data, "X"))
        return replace(done, data=[each.cpu().numpy() for each in data])

    def stream(
        self,
        batches: Iterable[Any],
        *,
        references: Callable[..., Any] | None = None,
        check_additivity: bool | float = True,
        **nearer: Unpack[Nearer],
    ) -> Iterator[Any]:
        """Yield a ``shap.Explanation`` for each batch of samples, for data that exceed the memory.

        Args:
            batches: samples, as for :meth:`shap_values`.
            references: a function that makes a background for each sample of a batch.
            check_additivity: as for :meth:`shap_values`.
            **nearer: likewise.

        Example:
            >>> import pytest; _ = pytest.importorskip("shap")
            >>> explainer = DeepExplainer(nn.Linear(3, 1), torch.randn(10, 3))
            >>> [part.shape for part in explainer.stream(torch.randn(5, 3).split(2))]
            [(2, 3), (2, 3), (1, 3)]

        """
        for batch in batches:
            yield self(batch, references=references, check_additivity=check_additivity, **nearer)

    def _explain(
        self,
        X: Any,
        ranked: int | None,
        order: Order,
        check_additivity: bool | float,
        references: Any,
        nearer: Nearer,
        *,
        multipliers: bool = False,
    ) -> Explained:
        nearness = Nearness.of(nearer)
        tolerance = tolerance_of(check_additivity, wide=self._wide)
        samples = samples_of(X, self._data, self._multi_input)
        if self._cut is None:
            nearness.check_groups([each.shape[1:] for each in samples])
        own = references is not None
        if own:
            references = references_for(references, samples, self._data, self._multi_input)
        self._follow()
        told = telling_why(self._target, self._original, samples)
        check_cells(nearness.cells, self._asked.model, self._target.model)
        with told, self._full_precision(), compiling(self._compiled), cells_by(nearness.cells):
            count = self._output_shape.numel()
            chosen = chosen_outputs(self._run, samples, count, ranked, order)
            problem = Problem(samples, references or self._data, chosen, own, multipliers=multipliers)
            done = self._explained(problem, self._output_shape if ranked is None else None, nearness)
            if tolerance is not None:
                rounds = None if self._wide else partial(self._in_float64, problem, nearer)
                check_sums(self._target, done, problem, tolerance, rounds)
        if not self._proven(samples, torch.from_numpy(done.outputs)):
            again = references if self._multi_input or not own else references[0]
            return self._explain(X, ranked, order, check_additivity, again, nearer, multipliers=multipliers)
        return done if self._cut is None else self._cut.of_layer(done, self._target, self._data)

    def _in_float64(self, problem: Problem, nearer: Nearer, rows: Tensor) -> Explained | None:
        """Explain samples once more in float64; None if that does not add up, or cannot be done."""
        part = problem.of_rows(rows)
        asked = self._asked.same_of(Twin(self._original.model).model.double())
        data, samples, references = (
            widened(each, self._multi_input) for each in (self._data, part.samples, part.references)
        )
        try:
            with default_dtype(torch.float64):
                explainer = DeepExplainer(
                    data=data, progress=False, compiled=self._compiled, **asked.arguments
                )
                # Also where the model goes back to float32 by itself: there is nothing wider to ask.
                explainer._wide = True
                own = references if problem.own else None
                return explainer._explain(samples, None, "max", True, own, nearer)
        except Exception:
            # An operation without a rule, or a model that is bound to its dtype.
            return None

    def _explained(self, problem: Problem, output_shape: torch.Size | None, nearness: Nearness) -> Explained:
        tail = (problem.outputs,) if output_shape is None else tuple(output_shape)
        contexts = context_inputs(self._target, problem)
        direct = nearness.is_direct or not (problem.rows and problem.count)
        ways = None if direct else self._ways(problem, contexts, nearness)

        def explain(problem: Problem) -> Explained:
            # What is remembered are references in their own context.
            elsewhere = contexts or problem.read_as is not None
            remembered = replace(self._remembered, references=None) if elsewhere else self._remembered
            if ways is None:
                parts = attribute(self._target, problem, self._max_memory, remembered)
                return collect(parts, problem, tail, progress=self._progress)
            path, opened = ways
            problem = problem if opened is None else opened.problem(problem)
            target = self._target if opened is None else opened.target
            parts = attribute_along(path, target, problem, self._max_memory, remembered)
            return collect(parts, problem, tail, progress=self._progress)

        mixed = ways is not None
        # A function of the output may go by numbers.
        undecided = set() if self._asked.computes else self._remembered.undecided
        return explained_as_read(self._target, problem, contexts, self._run, explain, undecided, mixed=mixed)

    def _ways(
        self, problem: Problem, contexts: Sequence[int], nearness: Nearness
    ) -> tuple[Path, Through | None]:
        """Return the path from references to samples, and what it goes through: the model if it is None."""
        if self._cut is None:
            return nearness.path(problem, contexts), None
        opened = through(self._target, partial(self._cut.rows_of, self._target), problem)
        row = opened.problem(problem.of_rows(slice(1)).of_references(0, 1))
        return nearness.path(row, (), opened.target.given, around=opened.around), opened
