"""References to choose among: medoids, the sample's own steps in other orders, rows that fit a mask."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import InputError
from rewriter.inputs import as_inputs, check_like
from rewriter.references.held import Held, masks_of
from rewriter.references.medoids import MOST, distances_to, medoids, scales_of

Inputs = list[Tensor]


@dataclass(frozen=True, repr=False, eq=False)
class References(ABC):
    """A function that makes references of samples, as ``DeepExplainer.shap_values(x, references=...)`` takes.

    Args:
        data: rows that they may be made of, one tensor per input.
        several: whether users give lists.
        count: how many for each sample.
        held: what they have in common with the sample.

    """

    data: Inputs
    several: bool
    count: int
    held: Held

    def __call__(self, samples: Any) -> Any:
        """Return references (M, count, *shape) of samples (M, *shape); lists for several inputs."""
        given = as_inputs(samples, None, "samples")
        # Data may be in the float64 of numpy, samples in the dtype of the model.
        alike = [
            each.to(own.dtype) if each.is_floating_point() and own.is_floating_point() else each
            for each, own in zip(given, self.data, strict=False)
        ]
        check_like(as_inputs(alike + given[len(alike) :], self.data, "samples"), self.data, "samples")
        masks = masks_of(self.held, given, self.several)
        made = [
            torch.where(mask.unsqueeze(1), sample.unsqueeze(1), each.to(sample))
            for mask, sample, each in zip(masks, given, self._made(alike, masks), strict=True)
        ]
        return self._as_given(made)

    @property
    def background(self) -> Any:
        """Rows for ``DeepExplainer(model, background)``: all that they may be made of, or the medoids."""
        return self._as_given([each.clone() for each in self.data])

    def _as_given(self, inputs: Inputs) -> Any:
        return inputs if self.several else inputs[0]

    @abstractmethod
    def _made(self, samples: Inputs, masks: Inputs) -> Inputs:
        """Return references (M, count, *shape), in which what is held need not be right yet."""


@dataclass(frozen=True, repr=False, eq=False)
class Medoids(References):
    """Rows of the data that stand for the others, the same for all samples.

    Args:
        rows: which, (count,).

    """

    rows: Tensor

    @property
    def background(self) -> Any:
        """The rows as they are, (count, *shape)."""
        return self._as_given([each[self.rows] for each in self.data])

    def _made(self, samples: Inputs, masks: Inputs) -> Inputs:
        return [
            each[self.rows].to(sample.device).expand(len(sample), *[-1] * each.dim())
            for each, sample in zip(self.data, samples, strict=True)
        ]


@dataclass(frozen=True, repr=False, eq=False)
class Permuted(References):
    """The steps of the sample itself in other orders; what is held stays where it is.

    Args:
        keys: by which steps are ordered, (count, T).
        times: for each input the dimension of a row that is time, None for none.

    """

    keys: Tensor
    times: list[int | None]

    def _made(self, samples: Inputs, masks: Inputs) -> Inputs:
        return [
            each.unsqueeze(1).expand(-1, self.count, *each.shape[1:])
            if time is None
            else self._permuted(each.movedim(1 + time, 1), mask.movedim(1 + time, 1)).movedim(2, 2 + time)
            for each, mask, time in zip(samples, masks, self.times, strict=True)
        ]

    def _permuted(self, x: Tensor, mask: Tensor) -> Tensor:
        """Permute the steps of each column (M, T, ...) that are not held; (M, count, T, ...)."""
        steps = x.shape[1]
        shape = len(x), self.count, *x.shape[1:]
        lead = [1, steps] + [1] * (x.dim() - 2)
        place = torch.arange(steps, dtype=torch.float64, device=x.device).view(lead)
        keys = self.keys.to(x.device).view(1, self.count, *lead[1:])
        # Those that are held come last, in their order, and are so exchanged with themselves.
        places = torch.where(mask, steps + place, place).argsort(1)
        drawn = torch.where(mask.unsqueeze(1), 1 + place.unsqueeze(1), keys).argsort(2)
        moved = x.unsqueeze(1).expand(shape).gather(2, drawn.expand(shape))
        return torch.empty_like(moved).scatter_(2, places.unsqueeze(1).expand(shape), moved)


@dataclass(frozen=True, repr=False, eq=False)
class Conditional(References):
    """For each sample the rows of the data that are nearest to it in what is held.

    Rows equally near come in an order that is drawn once; a row that equals the sample is none. Where fewer
    rows are left than asked for they come again, the nearest first.

    Args:
        scales: what differences of features are divided by.

    """

    scales: Inputs

    def _made(self, samples: Inputs, masks: Inputs) -> Inputs:
        device = samples[0].device
        data, scales = [each.to(device) for each in self.data], [each.to(device) for each in self.scales]
        found = []
        for m in range(len(samples[0])):
            row = [each[m] for each in samples]
            far = distances_to(row, data, scales, [each[m] for each in masks])
            same = [(many == one).reshape(len(many), -1).all(1) for one, many in zip(row, data, strict=True)]
            far[torch.stack(same).all(0)] = torch.inf
            others = far.argsort(stable=True)[: int(far.isfinite().sum())]
            if not len(others):
                raise InputError(
                    f"X: sample {m} equals all rows of the data; there is none to compare it with"
                )
            # Where there are fewer the nearest come again.
            found.append(others[torch.arange(self.count, device=device) % len(others)])
        rows = torch.stack(found) if found else torch.empty(0, self.count, dtype=torch.long, device=device)
        return [each[rows] for each in data]


def _orders(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Return keys of orders, none of which leaves all steps where they are."""
    keys = torch.rand(count, steps, generator=generator, dtype=torch.float64)
    while True:
        stays = (keys.diff(dim=1) > 0).all(1)
        if not stays.any():
            return keys
        keys[stays] = torch.rand(int(stays.sum()), steps, generator=generator, dtype=torch.float64)


def propose_references(
    data: Any, count: int = 8, *, held: Held = None, time: Any = 0, seed: int = 0
) -> dict[str, References]:
    """Propose references for sequences, each a function for ``shap_values(x, references=...)``.

    An explanation answers "why this output and not that of the references?", so references are a question
    and not a detail. *medoids* ask why not as usual: rows of the data that stand for the others (Kaufman and
    Rousseeuw 1990). *permuted* asks what the order does: the same steps in other orders. *conditional* asks
    why not as in rows that are like the sample in what is held. :func:`compare_references` measures how much
    depends on the choice.

    Args:
        data: rows (N, *shape), one tensor or array, or a list with one per input of the model.
        count: how many references for each sample.
        held: what references have in common with their sample, and what gets no share therefore: booleans
            that broadcast to a row, ``[False, True]`` for the second of two features; a list for several
            inputs, with None or True for one; or a function of samples that returns them for each, (M, ...):
            of padding, say.
        time: which dimension of a row is time; a list for several inputs, with None for one that has none
            and stays as in the sample. With a number, inputs of another length than the first have none.
        seed: of the orders, and of the 1000 rows among which medoids are looked for where there are more.

    Returns:
        Functions by name: ``"medoids"``, whose ``background`` is the rows themselves, ``"permuted"`` where
        there is more than one step, and, if something is held, ``"conditional"``.

    Raises:
        InputError: for data, a count, a mask or a dimension that do not fit.

    Example:
        >>> x = torch.randn(50, 6, 2)
        >>> proposed = propose_references(x, 4, held=[False, True])
        >>> {name: tuple(make(x[:3]).shape) for name, make in proposed.items()}
        {'medoids': (3, 4, 6, 2), 'permuted': (3, 4, 6, 2), 'conditional': (3, 4, 6, 2)}
        >>> bool((proposed["permuted"](x[:3])[..., 1] == x[:3, None, :, 1]).all())
        True

    """
    several = isinstance(data, list | tuple)
    rows = as_inputs(data, None, "data")
    if not rows:
        raise InputError("data: expected at least one input, got an empty list")
    check_like(rows, rows, "data")
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name}: expected an integer, {least} or more, got {value!r}")
    if count > min(len(rows[0]), MOST):
        raise InputError(
            f"count: expected at most as many as rows of data, {min(len(rows[0]), MOST)}, got {count}"
        )
    generator = torch.Generator().manual_seed(int(seed))
    # A copy, in an order that is drawn: of rows equally near any may come first.
    order = torch.randperm(len(rows[0]), generator=generator)
    rows = [each[order.to(each.device)] for each in rows]
    if not callable(held):
        masks_of(held, [each[:1] for each in rows], several)
    common = rows, several, int(count), held
    scales = scales_of(rows)
    seen = [each[:MOST] for each in rows]
    between = [distances_to([each[i] for each in seen], seen, scales) for i in range(len(seen[0]))]
    found: dict[str, References] = {"medoids": Medoids(*common, medoids(torch.stack(between), int(count)))}
    times = _times(time, rows, several)
    steps = {each.shape[1 + at] for each, at in zip(rows, times, strict=True) if at is not None}
    if len(steps) > 1:
        raise InputError(
            f"time: expected inputs of one length, got {sorted(steps)}; pass None for one of them"
        )
    # A single step has no other order.
    if steps and (length := steps.pop()) > 1:
        found["permuted"] = Permuted(*common, _orders(int(count), length, generator), times)
    if held is not None:
        found["conditional"] = Conditional(*common, scales)
    return found


def _times(time: Any, rows: Inputs, several: bool) -> list[int | None]:
    """Return for each input which dimension of a row is time."""
    listed = several and isinstance(time, list | tuple)
    given = list(time) if listed else [time] * len(rows)
    if len(given) != len(rows):
        raise InputError(
            f"time: expected a list of {len(rows)}, a dimension or None per input, got {len(given)}"
        )
    found: list[int | None] = []
    for k, (at, each) in enumerate(zip(given, rows, strict=True)):
        dims = each.dim() - 1
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | np.integer)):
            raise InputError(f"time, input {k}: expected a dimension of a row or None, got {at!r}")
        fits = at is None or -dims <= at < dims
        if not fits and (listed or k == 0):
            raise InputError(
                f"time, input {k}: expected a dimension of rows of shape {tuple(each.shape[1:])}, got {at}"
            )
        found.append(int(at) % dims if fits and at is not None else None)
    if not listed and found[0] is not None:
        # One number is of the sequences, of which the first input is one.
        length = rows[0].shape[1 + found[0]]
        found = [
            at if at is not None and each.shape[1 + at] == length else None
            for at, each in zip(found, rows, strict=True)
        ]
    return found
