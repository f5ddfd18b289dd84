"""The rule for max pooling: that of maxima, window by window, wherever windows overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.maxima.pooling import AdaptiveMaxPool, MaxPool
from passes.operations.maxima.rule import maximum_multipliers


def pool_pull(
    atom: MaxPool | AdaptiveMaxPool, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers of pooled values to what was pooled: an element gets the sum over its windows.

    Args:
        atom: the pool.
        x: the operand of the samples, (n or 1, *operand shape).
        x0: of the references, likewise.
        y: what the pool made of it, of which only the shape matters.
        y0: not used.
        d: (K, n, *output shape).

    """
    space = x[0].shape[-atom.space :]
    windows = places_of(atom, space, y.shape[-atom.space :], y.device)
    multipliers = maximum_multipliers(_in_windows(x[0], windows, space), _in_windows(x0[0], windows, space))
    given = d.flatten(-atom.space).unsqueeze(-1) * multipliers
    # One place more, for what lies outside.
    pulled = given.new_zeros(*given.shape[:-2], space.numel() + 1)
    pulled.index_add_(-1, windows.flatten(), given.flatten(-2))
    return (torch.unflatten(pulled[..., :-1], -1, space),)


def _in_windows(x: Tensor, windows: Tensor, space: torch.Size) -> Tensor:
    flat = x.flatten(-len(space))
    outside = flat.new_full((*flat.shape[:-1], 1), -torch.inf)
    return torch.cat((flat, outside), -1)[..., windows]


def places_of(
    atom: MaxPool | AdaptiveMaxPool, space: Sequence[int], pooled: Sequence[int], device: torch.device
) -> Tensor:
    """Return the places of the elements of each window, in the flattened space; its size is outside.

    Args:
        atom: the pool.
        space: sizes of the dimensions that are pooled.
        pooled: sizes of what comes out.
        device: where to make it.

    Returns:
        (number of windows, elements of the largest), int64.

    Example:
        >>> places_of(MaxPool(1, 2, padding=1), [4], [3], torch.device("cpu"))
        tensor([[4, 0],
                [1, 2],
                [3, 4]])

    """
    places = torch.zeros(1, 1, dtype=torch.long, device=device)
    outside = torch.zeros(1, 1, dtype=torch.bool, device=device)
    for k, (size, count) in enumerate(zip(space, pooled, strict=True)):
        here, within = _places_along(atom, k, size, count, device)
        places = _outer(places * size, here, torch.add)
        outside = _outer(outside, ~within, torch.logical_or)
    return torch.where(outside, torch.Size(space).numel(), places)


def _outer(a: Tensor, b: Tensor, join: object) -> Tensor:
    """Join all windows, and all elements of windows, of two dimensions: (m, i), (n, j) to (m n, i j)."""
    joined: Tensor = join(a[:, None, :, None], b[None, :, None, :])  # type: ignore[operator]
    return joined.flatten(2).flatten(0, 1)


def _places_along(
    atom: MaxPool | AdaptiveMaxPool, k: int, size: int, count: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return places along dimension k, (count, width), and which of them lie within window and input."""
    window = torch.arange(count, device=device)[:, None]
    if isinstance(atom, AdaptiveMaxPool):
        begin = window * size // count
        end = -(-(window + 1) * size // count)
        width = int((end - begin).max()) if count else 0
        places = begin + torch.arange(width, device=device)
        return places, places < end
    kernel, stride, padding, dilation = (
        each if isinstance(each, int) else each[k if len(each) > 1 else 0]
        for each in (atom.kernel_size, atom.stride, atom.padding, atom.dilation)
    )
    places = window * stride - padding + torch.arange(kernel, device=device) * dilation
    return places, (places >= 0) & (places < size)
