"""Torch's own sample inputs of an operation, drawn several times: the rows of a batch, each in its domain."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.oracles.samples import all_samples

DOUBLE = torch.float64
#: Draws of each sample: half of them are explained, half are their background.
ROWS = 4
# Larger ones show nothing more.
_NUMBERS = 1500


@dataclass(frozen=True)
class Drawn:
    """One sample of an operation in :data:`ROWS` draws, which differ in their floating point numbers only.

    Args:
        function: takes the arguments.
        leaves: of the arguments, in the order of pytree; of the first draw.
        spec: how they make arguments.
        rows: of each varying leaf, all draws, by its place.

    """

    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: Any
    rows: dict[int, tuple[Tensor, ...]]

    def call(self, operands: dict[int, Any], leaves: Sequence[Any]) -> Any:
        """Call the function with some of its leaves replaced."""
        flat = list(leaves)
        for place, operand in operands.items():
            flat[place] = operand
        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return self.function(*args, **kwargs)

    def with_gradients(self) -> Any:
        """Return what the function makes of the first draw, whose operands have gradients."""
        leaves = {place: each[0].clone().requires_grad_() for place, each in self.rows.items()}
        return self.call(leaves, self.leaves)

    def along(self, operands: dict[int, Any], dim: int) -> Any:
        """Call the function over one dimension."""
        flat = list(self.leaves)
        for place, operand in operands.items():
            flat[place] = operand
        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return self.function(*args, **kwargs, dim=dim)

    def positive(self) -> Drawn:
        """Take the absolute values of all numbers, and a little more."""
        leaves = tuple(each.abs() + 0.1 if varies(each) else each for each in self.leaves)
        rows = {place: tuple(each.abs() + 0.1 for each in rows) for place, rows in self.rows.items()}
        return Drawn(self.function, leaves, self.spec, rows)

    def only(self, places: Sequence[int]) -> Drawn:
        """Let nothing but some leaves vary."""
        return Drawn(self.function, self.leaves, self.spec, {each: self.rows[each] for each in places})

    def row(self, k: int) -> Any:
        """Return what the function makes of one draw."""
        return self.call({place: each[k].clone() for place, each in self.rows.items()}, self.leaves)


def varies(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.dtype == DOUBLE
        and leaf.numel() > 0
        and leaf.layout == torch.strided
    )


def _calls(entry: Any, seed: int) -> list[Any]:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return all_samples(entry)


def drawn(entry: Any, count: int) -> Iterator[Drawn]:
    """Yield samples of one of torch's entries that differ in their options or ranks, ``count`` at most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = [_calls(entry, seed) for seed in range(ROWS)]
    seen: set[str] = set()
    for samples in zip(*draws, strict=False):
        if len(seen) == count:
            return
        flat = [pytree.tree_flatten(((each.input, *each.args), each.kwargs)) for each in samples]
        leaves, spec = flat[0]
        kind = str(
            [
                (each.dim(), each.dtype, each.numel() == 1) if isinstance(each, Tensor) else each
                for each in leaves
            ]
        ) + str(spec)
        if kind in seen or any(other[1] != spec for other in flat) or not _alike([each for each, _ in flat]):
            continue
        places = [k for k, each in enumerate(leaves) if varies(each) and bool(each.isfinite().all())]
        places = with_derivative(entry.op, leaves, spec, places)
        if not places or sum(leaves[k].numel() for k in places) > _NUMBERS:
            continue
        seen.add(kind)
        yield Drawn(
            entry.op,
            tuple(leaves),
            spec,
            {k: apart([row[k].detach().contiguous() for row, _ in flat]) for k in places},
        )


def with_derivative(function: Any, leaves: list[Any], spec: Any, places: list[int]) -> list[int]:
    """Return the places of those operands by which torch itself derives."""
    found = []
    for place in places:
        flat = [each.detach().clone() if isinstance(each, Tensor) else each for each in leaves]
        flat[place] = flat[place].requires_grad_()
        args, kwargs = pytree.tree_unflatten(flat, spec)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = function(*args, **kwargs)
        except Exception:
            continue
        if any(isinstance(each, Tensor) and each.requires_grad for each in pytree.tree_leaves(result)):
            found.append(place)
    return found


def apart(rows: list[Tensor]) -> tuple[Tensor, ...]:
    """Return draws that differ, also where torch's sample is always the same."""
    if all(torch.equal(each, rows[0]) for each in rows):
        return tuple(each + 0.1 * k * torch.rand_like(each) for k, each in enumerate(rows))
    return tuple(rows)


def _alike(rows: list[list[Any]]) -> bool:
    """Whether draws have tensors of the same shapes."""
    shapes = [
        [(each.shape, each.dtype) if isinstance(each, Tensor) else None for each in row] for row in rows
    ]
    return all(each == shapes[0] for each in shapes)
