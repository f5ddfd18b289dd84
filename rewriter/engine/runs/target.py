"""What is explained, as something that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin
from rewriter.compiler.islands import islands_of, run_islands
from rewriter.engine.problem import Inputs
from rewriter.engine.weights import SharedWeights


@dataclass(frozen=True)
class Target:
    """What is explained, and with respect to what.

    Args:
        model: a linked copy.
        weights: those that it shares with the user's model.
        select: picks the tensor to explain from what the model returns.
        interim: name of the operation whose inputs receive the attributions, or None for the model's.
        tokens: integers receive attributions, where an embedding looks them up.
        stateful: the model's code keeps something between calls, so that each run needs a clone.
        code: why the model's own code runs, with rewritten layers, instead of a graph.
        rewritten: what the linked copy was made of.

    """

    model: nn.Module
    weights: SharedWeights
    select: Callable[[Any], Any]
    interim: str | None = None
    tokens: bool = False
    stateful: bool = False
    code: str | None = None
    rewritten: nn.Module | None = None

    @cached_property
    def _islands(self) -> list[str]:
        return [] if self.rewritten is None else islands_of(self.rewritten)

    def run(self, inputs: Inputs) -> Tensor:
        """Return the outputs to explain, with the batch first.

        Raises:
            RewriteError: if there is not one row per row of the input.

        """
        model = Twin(self.model).model if self.stateful else self.model
        with unnoticed(model):
            output = self.select(run_islands(self._islands, model, *inputs))
        if isinstance(output, Tensor) and output.dim() == 0 and len(inputs[0]) == 1:
            # Of one row with one output, squeezed.
            output = output.unsqueeze(0)
        if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != inputs[0].shape[0]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise RewriteError(
                f"expected an output with the batch of {inputs[0].shape[0]} in dimension 0, got {got}; pass "
                "output=... to say which part of what the model returns is to be explained"
            )
        return output
