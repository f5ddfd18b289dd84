"""What references have in common with their sample: a mask of the elements that nobody asks about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import InputError

#: Of one row, or a function of samples that returns it for each.
Held = Any


def masks_of(held: Held, samples: Sequence[Tensor], several: bool) -> list[Tensor]:
    """Return which elements are held as in the samples, booleans (M, *shape) per input.

    Args:
        held: a boolean mask that broadcasts to a row, None for nothing; a list of them for several inputs;
            or a function of the samples that returns such for each, (M, ...).
        samples: one tensor (M, *shape) per input.
        several: whether users give lists.

    Raises:
        InputError: for what is no mask, or does not fit.

    Example:
        >>> masks_of([True, False], [torch.zeros(1, 3, 2)], several=False)[0][0, 0]
        tensor([ True, False])

    """
    of_each = callable(held)
    if of_each:
        held = _call(held, samples, several)
    masks = list(held) if several and isinstance(held, list | tuple) else [held]
    if held is None:
        masks = [None] * len(samples)
    if len(masks) != len(samples):
        raise InputError(
            f"held: expected a list of {len(samples)}, a mask or None per input, got {len(masks)}"
        )
    return [_mask(*each, of_each) for each in zip(range(len(samples)), masks, samples, strict=True)]


def _call(held: Callable[[Any], Any], samples: Sequence[Tensor], several: bool) -> Any:
    # Copies, for what writes to its arguments.
    copies = [each.clone() for each in samples]
    return held(copies if several else copies[0])


def _mask(k: int, mask: Any, samples: Tensor, of_each: bool) -> Tensor:
    shape = samples.shape if of_each else samples.shape[1:]
    if mask is None:
        return torch.zeros(samples.shape, dtype=torch.bool, device=samples.device)
    try:
        given = mask if isinstance(mask, Tensor) else torch.as_tensor(np.asarray(mask))
    except (TypeError, ValueError) as error:
        raise InputError(f"held, input {k}: expected booleans, got {mask!r}") from error
    if given.dtype != torch.bool:
        raise InputError(
            f"held, input {k}: expected booleans, True for what is as in the sample, got {given.dtype}"
        )
    # One dimension less would be taken for another: rows for steps, steps for features.
    fits = given.dim() in (0, len(shape)) if of_each else given.dim() <= len(shape)
    try:
        if fits:
            return given.to(samples.device).expand(samples.shape)
    except RuntimeError:
        pass
    raise InputError(
        f"held, input {k}: expected a mask that broadcasts to the shape {tuple(shape)} of "
        f"{'the samples' if of_each else 'a row'}, got {tuple(given.shape)}"
    )
