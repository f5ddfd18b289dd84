"""A loop over the steps of sequences, as torch runs it and as a node that becomes an ONNX Scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: ONNX domain and name of the nodes that stand for loops while torch exports.
DOMAIN, SCAN = "rewriter", "Scan"
Body = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Loop:
    """What one node stands for.

    Args:
        name: its place in the model.
        body: takes states, one step of each sequence, and weights; returns new states and what is stacked.
        states: their number.
        sequences: their number.
        reverse: run from the last step to the first.
        sizes: of each argument of the body; those that are free are symbols of torch's.
        dtypes: of each argument of the body.
        results: the number of what the body returns.

    """

    name: str
    body: Body
    states: int
    sequences: int
    reverse: bool
    sizes: tuple[tuple[Any, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    results: int


@dataclass
class Loops:
    """The loops that were met while a graph was made, by number."""

    found: list[Loop] = field(default_factory=list)


_noted: ContextVar[Loops | None] = ContextVar("rewriter_loops", default=None)


@contextmanager
def noted_loops() -> Iterator[Loops]:
    """Have a node stand for each loop; yields what they stand for."""
    loops = Loops()
    token = _noted.set(loops)
    try:
        yield loops
    finally:
        _noted.reset(token)


def scan(
    name: str,
    body: Body,
    states: Sequence[Tensor],
    sequences: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    reverse: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a body over all steps.

    Args:
        name: its place in the model.
        body: see :class:`Loop`.
        states: at the begin.
        sequences: (T, *) each.
        weights: the same at all steps.
        reverse: run from the last step to the first.

    Returns:
        The last states, and what the body gave beside them, stacked in the order of time.

    Example:
        >>> def step(total, x):
        ...     return total + x, total + x
        >>> scan("sum", step, [torch.zeros(())], [torch.tensor([1.0, 2.0])], [])
        ([tensor(3.)], [tensor([1., 3.])])

    """
    loops = _noted.get()
    if loops is None:
        return _run(body, states, sequences, weights, reverse=reverse)
    arguments = (*states, *(each[0] for each in sequences), *weights)
    made = body(*arguments)
    key = len(loops.found)
    sizes = tuple(tuple(each.shape) for each in arguments)
    dtypes = tuple(each.dtype for each in arguments)
    loops.found.append(Loop(name, body, len(states), len(sequences), reverse, sizes, dtypes, len(made)))
    length = sequences[0].shape[0]
    shapes = [tuple(each.shape) for each in states]
    shapes += [(length, *each.shape) for each in made[len(states) :]]
    results = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{SCAN}",
        (*states, *sequences, *weights),
        {"key": key},
        dtypes=[each.dtype for each in made],
        shapes=shapes,
        version=1,
    )
    return list(results[: len(states)]), list(results[len(states) :])


def _run(
    body: Body,
    states: Sequence[Tensor],
    sequences: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    count, length = len(states), len(sequences[0])
    stacked: list[list[Tensor]] = []
    for t in range(length - 1, -1, -1) if reverse else range(length):
        made = body(*states, *(each[t] for each in sequences), *weights)
        states = made[:count]
        stacked.append(list(made[count:]))
    if reverse:
        stacked.reverse()
    return list(states), [torch.stack(each) for each in zip(*stacked, strict=True)]
