"""A cell run over time, with the weights that all steps share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class Weights(Protocol):
    """What the steps of a recurrence share."""

    hidden: nn.Module
    projection: nn.Linear | None


@dataclass
class _Shared:
    """The weights as plain attributes: a lookup by ``nn.Module`` in every step would cost more."""

    hidden: nn.Module
    projection: nn.Linear | None


class Recurrence(nn.Module):
    """One layer in one direction: a loop of ``cell`` over the steps of a sequence.

    Args:
        hidden: the ``Linear`` from the hidden state to the gates.
        cell: the cell's atoms, shared by all steps.
        projection: the ``Linear`` behind the cell of an LSTM with ``proj_size``, or None.
        reverse: run from the last step to the first.
        name: qualified name of the layer in the user's model, for error messages.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> rolled = Recurrence(nn.Linear(2, 2), RNNCellAtoms("tanh"))
        >>> out, h = rolled(torch.randn(5, 3, 2), None, torch.zeros(3, 2))
        >>> out.shape, bool((out[-1] == h).all())
        (torch.Size([5, 3, 2]), True)

    """

    def __init__(
        self,
        hidden: nn.Module,
        cell: nn.Module,
        projection: nn.Linear | None = None,
        *,
        reverse: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = cell
        self.projection = projection
        self.reverse = reverse
        # Every cell has these class attributes.
        self.states: int = cell.states  # type: ignore[assignment]
        self.gates: int = len(cell.gates)  # type: ignore[arg-type]
        self.name = name
        #: What makes the input's part of the gates is called so, beside the recurrence.
        self.beside: str | None = None

    def forward(self, gates: Tensor, mask: Tensor | None, *state: Tensor) -> State:
        """Run over all steps.

        Args:
            gates: the input's part of the gates, (T, B, G).
            mask: (T, B, 1) bool, False where a shorter sequence of a packed batch has ended, or None.
            state: ``h`` or ``h, c``, each (B, H).

        Returns:
            The hidden states (T, B, H) and the final state.

        """
        cell = self.cell
        return run(self, lambda _: cell, gates.unbind(0), mask, state, reverse=self.reverse)


def run(
    weights: Weights,
    cell_at: Callable[[int], nn.Module],
    gates: Sequence[Tensor],
    mask: Tensor | None,
    state: State,
    *,
    reverse: bool,
) -> State:
    """Loop over the steps of ``gates``, from the last if ``reverse``."""
    weights = _Shared(weights.hidden, weights.projection)
    outputs: list[Tensor] = [state[0]] * len(gates)
    steps = range(len(gates))
    for t in reversed(steps) if reverse else steps:
        new = step(weights, cell_at(t), gates[t], state)
        if mask is not None:
            # An ended sequence keeps its state; read backwards it has not begun yet.
            new = tuple(torch.where(mask[t], a, b) for a, b in zip(new, state, strict=True))
        state = new
        outputs[t] = state[0]
    return (torch.stack(outputs), *state)


def step(weights: Weights, cell: nn.Module, gates: Tensor, state: State) -> State:
    """Run one step: the hidden Linear, the cell and the projection."""
    new: State = cell(gates, weights.hidden(state[0]), *state)
    if weights.projection is not None:
        new = (weights.projection(new[0]), *new[1:])
    return new
