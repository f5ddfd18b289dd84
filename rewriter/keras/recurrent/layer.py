"""What Keras' recurrent layers become: recurrences, with Keras' arguments and outputs around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from passes.recurrent.layers import Layer
from passes.recurrent.recurrence import Recurrence
from rewriter.keras.recurrent.cells import CellParts


class KerasRecurrent(nn.Module):
    """A recurrent layer of Keras: one cell, or a stack of cells.

    Args:
        parts: of each cell.
        sequences: return all outputs, in the order in which they are made, not the last one.
        states: return the last states behind the outputs.
        backwards: begin at the end.
        zeros: return zeros where the mask is False, not the output before.
        nested: the states of each cell are a list of their own.
        held: states with which it begins where none are given, (1, H) each; None for zeros.
        kind: class name of the layer.
        name: for error messages.

    """

    def __init__(
        self,
        parts: Sequence[CellParts],
        *,
        sequences: bool,
        states: bool,
        backwards: bool,
        zeros: bool,
        nested: bool = False,
        held: Sequence[Tensor] | None = None,
        kind: str = "RNN",
        name: str = "",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.held = held is not None
        for k, state in enumerate(held or ()):
            self.register_buffer(f"held{k}", state)
        self.sequences = sequences
        self.states = states
        self.backwards = backwards
        self.zeros = zeros
        self.nested = nested
        #: Number and size of the states of each cell.
        self.sizes: list[tuple[int, int]] = []
        for k, each in enumerate(parts):
            steps = Recurrence(each.hidden, each.cell, reverse=backwards, name=f"{name}.cell{k}")
            self.sizes.append((steps.states, each.size))
            layer = Layer(0.0)
            layer.add_direction("reverse" if backwards else "forward", each.input, steps)
            self.add_module(f"cell{k}", layer)

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None) -> Any:
        """Return what the layer returns.

        Args:
            sequences: (B, T, F).
            initial_state: as Keras takes it: a tensor (B, H), or a list of them.
            mask: (B, T) bool, False where a step is left out, or None.

        """
        out, finals = self.run(sequences, initial_state, mask)
        if self.sequences and self.backwards:
            out = out.flip(1)
        return (out, *self.as_given(finals)) if self.states else out

    def run(
        self, sequences: Tensor, initial_state: Any, mask: Tensor | None
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the output, a sequence in the order of the steps, and the last states of each cell."""
        x = sequences.transpose(0, 1)
        steps = None if mask is None else mask.transpose(0, 1).unsqueeze(-1)
        given = self._states(sequences, initial_state)
        finals = []
        for k, state in enumerate(given):
            x, new = self.get_submodule(f"cell{k}")(x, steps, [state], None)
            finals.append([new[0][i] for i in range(self.sizes[k][0])])
        out = x if self.sequences else finals[-1][0]
        if steps is not None:
            out = self._masked(out, steps, given_state=self.held or initial_state is not None)
        return (out.transpose(0, 1) if self.sequences else out), finals

    def as_given(self, finals: list[list[Tensor]]) -> list[Any]:
        """Return the last states in Keras' order and form."""
        if not self.nested:
            return list(finals[0])
        return [each[0] if len(each) == 1 else each for each in finals]

    def _masked(self, out: Tensor, steps: Tensor, *, given_state: bool) -> Tensor:
        if self.zeros:
            now = steps if self.sequences else (steps[0] if self.backwards else steps[-1])
            return torch.where(now, out, 0.0)
        if not given_state:
            return out
        # Before the first step that counts Keras returns zeros, not the initial state.
        if not self.sequences:
            return torch.where(steps.any(0), out, 0.0)
        counted = (steps.flip(0) if self.backwards else steps).cumsum(0) > 0
        return torch.where(counted.flip(0) if self.backwards else counted, out, 0.0)

    def _states(self, x: Tensor, initial_state: Any) -> list[tuple[Tensor, ...]]:
        if initial_state is None and self.held:
            places = iter(range(sum(count for count, _ in self.sizes)))
            return [
                tuple(self.get_buffer(f"held{next(places)}").expand(x.shape[0], -1) for _ in range(count))
                for count, _ in self.sizes
            ]
        if initial_state is None:
            return [tuple(x.new_zeros(x.shape[0], size) for _ in range(count)) for count, size in self.sizes]
        if not isinstance(initial_state, list | tuple):
            initial_state = [initial_state]
        if not self.nested:
            return [tuple(initial_state)]
        return [tuple(each) if isinstance(each, list | tuple) else (each,) for each in initial_state]


class KerasBidirectional(nn.Module):
    """Keras' ``Bidirectional``: a layer for each direction, and their outputs merged.

    Args:
        first: runs forwards.
        second: runs backwards.
        merge: ``"concat"``, ``"sum"``, ``"mul"``, ``"ave"`` or None.

    """

    kind = "Bidirectional"

    def __init__(self, first: KerasRecurrent, second: KerasRecurrent, merge: str | None) -> None:
        super().__init__()
        self.forward_layer = first
        self.backward_layer = second
        self.merge = merge

    def forward(self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None) -> Any:
        """Return what the layer returns; arguments as :class:`KerasRecurrent` takes them."""
        half = None if initial_state is None else len(initial_state) // 2
        first = self.forward_layer.run(sequences, initial_state and initial_state[:half], mask)
        second = self.backward_layer.run(sequences, initial_state and initial_state[half:], mask)
        merged = self._merged(
            self._in_order(self.forward_layer, first[0], False),
            self._in_order(self.backward_layer, second[0], True),
        )
        if not self.forward_layer.states:
            return merged
        states = (*self.forward_layer.as_given(first[1]), *self.backward_layer.as_given(second[1]))
        return (*merged, *states) if self.merge is None else (merged, *states)

    @staticmethod
    def _in_order(layer: KerasRecurrent, out: Tensor, flipped: bool) -> Tensor:
        """Keras turns the outputs of the second layer round; they are in the steps' order if it runs back."""
        return out.flip(1) if layer.sequences and layer.backwards is not flipped else out

    def _merged(self, a: Tensor, b: Tensor) -> Any:
        if self.merge == "concat":
            return torch.cat([a, b], -1)
        if self.merge == "sum":
            return a + b
        if self.merge == "ave":
            return (a + b) / 2
        return a * b if self.merge == "mul" else (a, b)


class OverTime(nn.Module):
    """Keras' ``TimeDistributed``: a layer for each step.

    Args:
        layer: takes (B, ...).
        masked: it takes the mask of its step.

    Example:
        >>> OverTime(nn.Flatten())(torch.zeros(2, 3, 4, 5)).shape
        torch.Size([2, 3, 20])

    """

    def __init__(self, layer: nn.Module, *, masked: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.masked = masked

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the outputs of all steps, (B, T, ...)."""
        rows = inputs.flatten(0, 1)
        out = (
            self.layer(rows, mask=mask.flatten(0, 1))
            if self.masked and mask is not None
            else self.layer(rows)
        )
        apart: Tensor = out.unflatten(0, (inputs.shape[0], inputs.shape[1]))
        return apart
