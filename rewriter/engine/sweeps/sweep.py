"""What a recurrence needs of its cell: a forward pass that keeps what rules need, and a step back in time."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passes.recurrent.gates import OrderedGates
from passes.recurrent.recurrence import Recurrence

State = tuple[Tensor, ...]
#: What the forward pass left of all steps, each (T, B, F).
Kept = tuple[Tensor, ...]
#: Turns the multipliers of the state back by step t, and puts those of its gates into a place.
Step = Callable[[int, int], None]


class GateSlots(NamedTuple):
    """Where a step puts the multipliers of the gates.

    Args:
        slots: how many there are, each as wide as the state.
        hidden: those that belong to the hidden weights.
        input: those that belong to the input's.
        order: of the hidden weights' gates in them; empty for torch's.

    """

    slots: int
    hidden: slice = slice(None)
    input: slice = slice(None)
    order: tuple[int, ...] = ()


class Recording(abc.ABC):
    """A forward pass under way."""

    @abc.abstractmethod
    def advance(self, t: int, state: State) -> State:
        """Run step t and return the new state."""

    @abc.abstractmethod
    def kept(self) -> Kept:
        """Return what all steps left."""


@dataclass(frozen=True)
class Swept:
    """Which pairs of samples and references a sweep turns back.

    Args:
        x: what the run of the samples kept.
        x0: that of the references.
        rows: brings a kept tensor of each, (T, B, F), into shapes that broadcast to
            (T, n, outer, M, what lies inside of the batch, F).
        outputs: number of outputs, K.
        references: of the pass, n.
        batch: rows of the samples, B.
        samples: number of samples, M.
        outer: size of what is merged with the batch outside of it.

    """

    x: Kept
    x0: Kept
    rows: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    outputs: int
    references: int
    batch: int
    samples: int
    outer: int


class Sweep(abc.ABC):
    """One kind of cell, run forwards and swept backwards."""

    slots: GateSlots
    #: Whether the state reaches the next step past the hidden weights.
    direct: bool

    @abc.abstractmethod
    def record(self, steps: Recurrence, gates: Tensor) -> Recording:
        """Begin a forward pass.

        Args:
            steps: the recurrence.
            gates: the input's part of the gates, (T, B, G).

        """

    @abc.abstractmethod
    def stepper(self, swept: Swept, d: list[Tensor], gates: Tensor, ordered: Any) -> Step:
        """Return what turns the multipliers back.

        Args:
            swept: the pairs.
            d: multipliers of the states, (K, n, B, H) each, changed in place; the part of the hidden state
                that goes through the hidden weights is the caller's.
            gates: receives those of the gates, (places, K x n x B, slots, H).
            ordered: puts what is in the order of time into that of the sweep.

        """


def faded(dtype: torch.dtype) -> float:
    """Return the size below which a multiplier counts as zero.

    Multipliers fade as the sweep goes back in time. Below this number products with what is of the order
    of rounding are subnormal, which processors compute a hundred times slower.

    Example:
        >>> faded(torch.float32) < 1e-30
        True

    """
    info = torch.finfo(dtype)
    return info.tiny / info.eps


def fused(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of a Linear, or of one Linear per gate put together, in torch's order.

    Example:
        >>> weight, bias = fused(torch.nn.Linear(2, 3, bias=False))
        >>> weight.shape, bias
        (torch.Size([3, 2]), None)

    """
    linears = [each for each in module.modules() if isinstance(each, torch.nn.Linear)]
    weights = [each.weight.detach() for each in linears]
    biases = [each.bias.detach() for each in linears if each.bias is not None]
    if isinstance(module, OrderedGates):
        return module.in_order(weights[0], 0), module.in_order(biases[0], 0) if biases else None
    if len(weights) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None
