"""What the user's own code returns for what is explained: the rewritten model must return the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.clone import clone_structure
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin
from rewriter.compiler.proof import CLOSE, UnprovenError, prove
from rewriter.engine.kept_state import keeps_state
from rewriter.engine.tiles import spans
from rewriter.explainer.batch_places import Neuron
from rewriter.explainer.layers import return_output_of
from rewriter.keras.origin import Origin

# Rows that run at once.
_ROWS = 64
# Relative to the largest output; more than what the order of sums makes of float32.
_APART = 1e-3
# An output that is never larger is 0 to rounding.
_LEAST = 1e-9


class Original:
    """A copy of the user's model in evaluation mode, with its own code.

    Args:
        model: the model; its tensors are shared, and never written to.
        select: picks the output that is explained.
        gives: names of the layer whose output it is picked from, if that is not the model's.
        origin: a model of Keras that the model was made of. Outputs are held to it, too, whose code may take
            longer than what is explained: those of the first, second, fourth, eighth … call of each shape.

    Example:
        >>> original = Original(nn.Linear(2, 1), lambda y: y)
        >>> x = torch.ones(3, 2)
        >>> original.agrees([x], original.outputs([x]))
        True

    """

    def __init__(
        self,
        model: nn.Module,
        select: Callable[[Any], Any],
        gives: Sequence[str] | None = None,
        origin: Origin | None = None,
    ) -> None:
        # What a layer gives in there is not asked of it.
        self._origin = origin if gives is None else None
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self.model = clone_structure(model).eval()
        self.select = select
        #: What returns that from which the output is picked.
        self.explained = self.model
        if gives is not None:
            self.explained = clone_structure(model).eval()
            return_output_of(self.explained, gives)
        # Whether its code keeps something between calls; None before it ran.
        self._stateful: bool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Stand by itself in a copy: Keras' models are not copied with it."""
        return {**self.__dict__, "_origin": None}

    def outputs(self, inputs: list[Tensor], *, of_origin: bool = False) -> Tensor:
        """Return what is explained, (B, *output shape); as the model of Keras gives it, if there is one."""
        run = self._origin if of_origin and self._origin is not None else self._given
        with unnoticed(self.explained), torch.inference_mode(False), torch.no_grad():
            parts = [
                self._of_rows(run, [each[begin:end].clone() for each in inputs])
                for begin, end in spans(len(inputs[0]), _ROWS)
            ]
        return torch.cat(parts)

    def _of_rows(self, run: Callable[[list[Tensor]], Any], rows: list[Tensor]) -> Tensor:
        output: Tensor = self.select(run(rows))
        if output.dim() == 0:
            # A model that takes all dimensions of size 1 away wants more than one row.
            output = self.select(run([torch.cat([each, each]) for each in rows]))[:1]
        return output

    def find_rows(self, inputs: list[Tensor]) -> None:
        """Find out where a layer whose neuron is explained has the batch.

        Raises:
            RewriteError: if that cannot be told.

        """
        if isinstance(self.select, Neuron):
            with unnoticed(self.explained), torch.inference_mode(False), torch.no_grad():
                self.select.find_rows(lambda rows: self._given([each.clone() for each in rows]), inputs)

    def _given(self, rows: list[Tensor]) -> Any:
        if self._stateful is None:
            self._stateful = keeps_state(self.explained, rows)
        model = Twin(self.explained).model if self._stateful else self.explained
        return model(*rows)

    def agrees(self, inputs: list[Tensor], got: Tensor) -> bool:
        """Whether a rewritten model gave the same outputs, to rounding of their dtype."""
        expected = self.outputs(inputs, of_origin=self._is_due(inputs))
        expected = expected.reshape(len(expected), -1)
        got = got.reshape(len(got), -1).to(expected)
        if expected.shape != got.shape:
            return False
        # Of the largest number of each output.
        scale = torch.where(expected.isfinite(), expected.abs(), 0).amax(0)
        same = (expected == got) | (expected.isnan() & got.isnan())
        return bool((same | ((expected - got).abs() <= CLOSE[expected.dtype] * scale)).all())

    def _is_due(self, inputs: list[Tensor]) -> bool:
        shapes = tuple(each.shape for each in inputs)
        self._calls[shapes] += 1
        return self._calls[shapes].bit_count() == 1

    def check_gap(self, inputs: list[Tensor], got: Tensor) -> None:
        """Raise UnprovenError if outputs that were explained are not those of the model.

        Args:
            inputs: of both.
            got: what was explained.

        """
        expected = self.outputs(inputs, of_origin=True)
        expected = expected.reshape(len(expected), -1).double()
        differs = (expected - got.reshape(len(got), -1).to(expected)).abs().nan_to_num(0.0)
        scale = torch.where(expected.isfinite(), expected.abs(), 0).amax(0).clamp_min(_LEAST)
        gap = float((differs / scale).max()) if differs.numel() else 0.0
        if gap > _APART:
            raise UnprovenError(
                f"what is explained differs from what the model gives, by {gap:.2g} of the largest output: "
                "does its code draw random numbers, write to .data, run under autocast, or go by the number "
                "of rows?"
            )

    def proves(self, rewritten: nn.Module, inputs: list[Tensor]) -> str:
        """Return why a rewritten model is another function; ``""`` if it only rounds differently."""
        try:
            prove(self.model, rewritten.eval(), tuple(inputs))
        except UnprovenError as error:
            return str(error)
        return ""
