"""``DeepExplainer``: the face of ``shap.DeepExplainer``, the linked runs behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.user_code.source import where_failed
from passes.user_code.twin import Twin
from rewriter.compiler.proof import wrong
from rewriter.engine.attribution import Remembered, attribute
from rewriter.engine.contexts import context_inputs
from rewriter.engine.integers.lookups import holds_embedding
from rewriter.engine.kept_state import keeps_state
from rewriter.engine.problem import Inputs, Problem
from rewriter.engine.sweeps.compiled import compiling
from rewriter.engine.tiles import spans
from rewriter.explainer.additivity import check_sums
from rewriter.explainer.arguments import bytes_of, doubled, tolerance_of
from rewriter.explainer.contexts import explained_in_context
from rewriter.explainer.coupled_rows import check_rows_apart
from rewriter.explainer.cut import Cut
from rewriter.explainer.result import Explained, Names, collect
from rewriter.explainer.suspects import why_not_explained
from rewriter.explainer.target import Asked, Output, linked_target
from rewriter.inputs import Model, as_inputs, check_like

Array = np.ndarray[Any, Any]
Order = Literal["max", "min", "max_abs"]
# Rows of a run without attributions, whose memory nobody plans.
_ROWS = 16


class DeepExplainer:
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
        feature_names: names of the last dimension of the input, or of all its elements; the columns of a
            data frame by default.
        output_names: names of the outputs.
        max_memory: bytes to work in, beside inputs and results; a quarter of what is free by default.
        progress: show a bar (if tqdm is installed) for work that takes more than a few seconds.
        compiled: run the steps of LSTM and GRU in C on the CPU. The system's C compiler builds them the
            first time (about a second) and the user's cache directory keeps them; where there is none,
            torch's operations compute the same, slower.

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
        compiled: bool = True,
    ) -> None:
        for name, value in (("session", session), ("learning_phase_flags", learning_phase_flags)):
            if value is not None:
                raise RewriteError(
                    f"{name}: expected None, got {type(value).__name__}; it belongs to TensorFlow 1, and "
                    "this explains PyTorch models: leave it out"
                )
        with torch.inference_mode(False):
            self._asked = Asked.of(model, output, attribute_to_layer_input)
            self._target, self._cut = linked_target(self._asked)
            self._original = self._asked.original()
        self._multi_input = isinstance(data, list | tuple)
        given = as_inputs(data, next(self._target.model.parameters(), None), "background")
        if not given or given[0].shape[0] == 0:
            raise RewriteError("background: expected at least one sample, got none")
        check_like(given, given, "background")
        if not any(each.is_floating_point() for each in given) and not holds_embedding(self._target.model):
            raise RewriteError(
                f"background: expected floating point numbers, got {given[0].dtype}; integers have no "
                "attributions, unless an nn.Embedding looks them up"
            )
        # A copy, which nobody else writes to.
        self._data = [each.clone() for each in given]
        if feature_names is None and hasattr(data, "columns"):
            feature_names = [str(name) for name in data.columns]
        self._names = Names(feature_names, output_names)
        self._max_memory = bytes_of(max_memory)
        self._progress = progress
        self._compiled = compiled
        self._remembered = Remembered()
        with self._full_precision():
            check_rows_apart(self._original.explained, self._original.select, self._data)
        outputs = self._first_run()
        while not self._proven(self._data, outputs):
            outputs = self._first_run()
        self._output_shape = outputs.shape[1:]
        floats = [each.dtype for each in self._data if each.is_floating_point()]
        self._wide = all(each == torch.float64 for each in (*floats, outputs.dtype))
        #: The mean of the outputs over the background, one per output; a number where they have no axis.
        self.expected_value: Any = outputs.mean(0).cpu().numpy()[()]

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
            check_additivity: whether the values must sum to the difference of the outputs; a float is
                the tolerance relative to each output's own change from its mean over the background, by
                default 1e-4 in float32 and 1e-8 in float64. What float32 leaves beyond that is judged in
                float64, where it is gone if it was rounding.
            references: a background of its own for each sample, (M, N, *shape).

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
        done = self._explain(X, ranked_outputs, output_rank_order, check_additivity, references)
        several = len(done.values) > 1 if self._cut else self._multi_input
        values = done.values if several else done.values[0]
        return values if ranked_outputs is None else (values, done.chosen)

    def __call__(self, X: Any, *, references: Any = None, check_additivity: bool | float = True) -> Any:
        """Return a ``shap.Explanation`` for ``shap.plots``, with named features flattened to one dimension.

        Its values are (M, features) for a model with one output, else (M, features, outputs), of which
        ``explanation[..., k]`` is what most plots take. See :meth:`shap_values` for the arguments.
        """
        done = self._explain(X, None, "max", check_additivity, references)
        if self._cut is not None:
            with self._full_precision():
                data = self._cut.rows_of(self._target, as_inputs(X, self._data, "X"))
            done = replace(done, data=[each.cpu().numpy() for each in data])
        return self._names.explanation(done, self._output_shape)

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
        tolerance = tolerance_of(check_additivity, wide=self._wide)
        samples = as_inputs(X, self._data, "X")
        check_like(samples, self._data, "X")
        own = references is not None
        background = as_inputs(references, self._data, "references") if own else self._data
        if own:
            check_like(background, self._data, "references", samples=samples[0].shape[0])
        self._target.weights.check()
        versions = self._target.weights.versions()
        try:
            with self._full_precision(), compiling(self._compiled):
                problem = Problem(samples, background, self._choose(samples, ranked, order), own)
                done = self._explained(problem, self._output_shape if ranked is None else None)
                if tolerance is not None:
                    rounds = None if self._wide else partial(self._rounds, problem)
                    check_sums(self._target, done, problem, tolerance, rounds)
        except Exception as error:
            self._check_weights(versions)
            if isinstance(error, RewriteError | MemoryError | Warning | torch.OutOfMemoryError):
                raise
            raise RewriteError(why_not_explained(self._target, samples, error)) from error
        self._check_weights(versions)
        if not self._proven(samples, torch.from_numpy(done.outputs)):
            return self._explain(X, ranked, order, check_additivity, references)
        return done if self._cut is None else self._of_layer(self._cut, done)

    def _of_layer(self, cut: Cut, done: Explained) -> Explained:
        """Leave out what goes from the inputs around the layer, which counts in sums alone."""
        values = done.values[: cut.count]
        if not len(done.outputs):
            tail = done.values[0].shape[self._data[0].dim() :]
            rows = cut.rows_of(self._target, [each[:1] for each in self._data])
            values = [np.zeros((0, *each.shape[1:], *tail)) for each in rows]
        return replace(done, values=values)

    def _rounds(self, problem: Problem, row: int) -> bool:
        """Whether the attributions of a sample are additive once they are computed in float64."""
        inputs = [each[row : row + 1] for each in problem.samples]
        asked = self._asked.same_of(Twin(self._original.model).model.double())
        references = [each[row] for each in problem.references] if problem.own else problem.references
        try:
            explainer = DeepExplainer(
                asked.model if asked.layer is None else (asked.model, asked.layer),
                doubled(references, self._multi_input),
                output=asked.output,
                attribute_to_layer_input=asked.attribute_to_layer_input,
                progress=False,
            )
            # Also where the model goes back to float32 by itself: there is nothing wider to ask.
            explainer._wide = True
            explainer.shap_values(doubled(inputs, self._multi_input))
        except Exception:
            # An operation without a rule, or a model that is bound to its dtype.
            return False
        return True

    def _proven(self, inputs: Inputs, outputs: Tensor) -> bool:
        """Hold outputs against the user's own code; False if that runs from now on, in place of a graph.

        Raises:
            UnprovenError: if they differ, and there was no graph.

        """
        with self._full_precision():
            if not len(outputs) or self._original.agrees(inputs, outputs):
                return True
            assert self._target.rewritten is not None
            reason = self._original.proves(self._target.rewritten, inputs)
        if not reason:
            return True
        if self._target.code is not None or not isinstance(self._target.rewritten, fx.GraphModule):
            raise wrong(self._original.model, reason)
        reason = f"a graph of it computes something else: {reason}"
        self._target, self._cut = linked_target(self._asked, reason)
        if self._cut is not None:
            with self._full_precision():
                self._cut.measure(self._target, self._data)
        self._remembered = Remembered()
        return False

    def _check_weights(self, versions: tuple[int, ...]) -> None:
        if self._target.weights.versions() != versions:
            raise RewriteError(
                "the model's weights or buffers were written to while it was explained; stop training it "
                "for that time, or explain copy.deepcopy(model)"
            )

    def _explained(self, problem: Problem, output_shape: torch.Size | None) -> Explained:
        tail = (problem.outputs,) if output_shape is None else tuple(output_shape)
        contexts = context_inputs(self._target, problem)

        def explain(problem: Problem) -> Explained:
            # What is remembered are references in their own context.
            remembered = replace(self._remembered, references=None) if contexts else self._remembered
            parts = attribute(self._target, problem, max_memory=self._max_memory, remembered=remembered)
            return collect(parts, problem, tail, progress=self._progress)

        if not contexts:
            return explain(problem)
        return explained_in_context(self._target, problem, contexts, self._run, explain)

    def _choose(self, samples: Inputs, ranked: Any, order: Order) -> Tensor:
        """Return the indices (M, K) of the outputs to explain."""
        rows, count = samples[0].shape[0], self._output_shape.numel()
        if ranked is not None and not (isinstance(ranked, int | np.integer) and ranked >= 1):
            raise RewriteError(f"ranked_outputs: expected None or a positive integer, got {ranked!r}")
        if ranked is not None and order not in ("max", "min", "max_abs"):
            raise RewriteError(f"output_rank_order: expected 'max', 'min' or 'max_abs', got {order!r}")
        if ranked is None or count == 1:
            return torch.arange(count).repeat(rows, 1).int()
        if rows == 0:
            return torch.empty(0, min(int(ranked), count), dtype=torch.long)
        outputs = self._run(samples)
        outputs = outputs.reshape(len(outputs), -1)
        values = outputs.abs() if order == "max_abs" else outputs
        return values.sort(descending=order != "min")[1][:, :ranked].cpu()

    def _first_run(self) -> Tensor:
        """Run the background.

        Raises:
            RewriteError: if that fails, or its outputs are nothing that can be explained.

        """
        try:
            with self._full_precision():
                stateful = keeps_state(self._target.model, [each[:_ROWS] for each in self._data])
                self._target = replace(self._target, stateful=stateful)
                if self._cut is not None:
                    self._cut.measure(self._target, self._data)
            outputs = self._run(self._data)
        except RewriteError:
            raise
        except Exception as error:
            got = ", ".join(f"{tuple(each.shape)} of {each.dtype}" for each in self._data)
            raise RewriteError(
                f"background: the model, or output=, fails on inputs {got}: {type(error).__name__}: "
                f"{error}, {where_failed(error)}"
            ) from error
        if outputs.dtype not in (torch.float32, torch.float64) or not outputs[0].numel():
            raise RewriteError(
                f"expected outputs in float32 or float64, at least one per sample, got {outputs.dtype} of "
                f"shape {tuple(outputs.shape)}; pass output=... to say which part of what the model returns "
                "is to be explained"
            )
        if not bool(outputs.isfinite().all()):
            raise RewriteError("expected finite outputs, got NaN or infinity for the background")
        return outputs

    def _full_precision(self) -> torch.autocast:
        """Switch off the autocast of the caller: attributions are differences."""
        return torch.autocast(self._data[0].device.type, enabled=False)

    def _run(self, inputs: Inputs) -> Tensor:
        """Return the outputs of the model, without attributions."""
        with self._full_precision(), torch.no_grad():
            parts = [
                self._target.run([each[begin:end].clone() for each in inputs])
                for begin, end in spans(len(inputs[0]), _ROWS)
            ]
        return torch.cat(parts)
