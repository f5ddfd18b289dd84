"""Layers that move numbers, and those that merge several inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from rewriter.keras.layers.contract import Translation, UnsupportedError, drops


class Flat(nn.Module):
    """Keras' ``Flatten``.

    Args:
        first: the channels are in dimension 1, and go last.

    """

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, N)."""
        return (inputs.movedim(1, -1) if self.first else inputs).flatten(1)


def flatten(layer: Any) -> Translation:
    """Translate a ``Flatten``."""
    return drops(Flat(first=layer.data_format == "channels_first"))


class Reshaped(nn.Module):
    """Keras' ``Reshape``: rows in another shape.

    Args:
        shape: of a row; -1 for what is left.

    Example:
        >>> Reshaped((2, -1))(torch.zeros(3, 4)).shape
        torch.Size([3, 2, 2])

    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the rows."""
        return inputs.reshape(inputs.shape[0], *self.shape)


def reshape(layer: Any) -> Translation:
    """Translate a ``Reshape``."""
    return drops(Reshaped(layer.target_shape))


class Permuted(nn.Module):
    """Keras' ``Permute``.

    Args:
        order: of all dimensions.

    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the input with its dimensions in another order."""
        return inputs.permute(self.order)


def permute(layer: Any) -> Translation:
    """Translate a ``Permute``."""
    return drops(Permuted((0, *layer.dims)))


class RowRepeated(nn.Module):
    """Keras' ``RepeatVector``.

    Args:
        times: the length of the sequence.

    Example:
        >>> RowRepeated(3)(torch.zeros(2, 4)).shape
        torch.Size([2, 3, 4])

    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, times, F)."""
        return inputs.unsqueeze(1).expand(-1, self.times, -1)


def repeat_vector(layer: Any) -> Translation:
    """Translate a ``RepeatVector``."""
    return drops(RowRepeated(int(layer.n)))


class Merged(nn.Module):
    """Several inputs, two at a time.

    Args:
        both: what is made of two.
        mean: divide by their number.

    """

    def __init__(self, both: Callable[[Tensor, Tensor], Tensor], *, mean: bool = False) -> None:
        super().__init__()
        self.both = both
        self.mean = mean

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return one tensor."""
        made = reduce(self.both, inputs)
        return made / len(inputs) if self.mean else made


class EitherMask(nn.Module):
    """The mask of several inputs, of which one has it."""

    def forward(self, masks: Sequence[Tensor]) -> Tensor:
        """Return (B, T) bool."""
        return reduce(torch.logical_or, masks)


def merging(both: Callable[[Tensor, Tensor], Tensor], *, mean: bool = False) -> Callable[[Any], Translation]:
    """Return what translates ``Add``, ``Subtract``, ``Multiply``, ``Average``, ``Maximum`` or ``Minimum``.

    Args:
        both: what is made of two inputs.
        mean: divide by their number.

    """

    def translate(layer: Any) -> Translation:
        if getattr(layer, "_reshape_required", False):
            raise UnsupportedError("its inputs have different numbers of dimensions; reshape them before")
        return Translation(Merged(both, mean=mean), makes=EitherMask(), out="merged")

    return translate


class Joined(nn.Module):
    """Keras' ``Concatenate``.

    Args:
        axis: along which.

    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return one tensor."""
        return torch.cat(list(inputs), self.axis)


def concatenate(layer: Any) -> Translation:
    """Translate a ``Concatenate``.

    Along the features, all steps count that one of the inputs has; along the steps, masks are joined.
    """
    masks = Joined(1) if layer.axis == 1 else EitherMask()
    return Translation(Joined(layer.axis), makes=masks, out="merged")


class Dotted(nn.Module):
    """Keras' ``Dot`` of two inputs of rows or sequences.

    Args:
        axes: along which, of each.
        normalize: to length one before.

    """

    def __init__(self, axes: tuple[int, int], *, normalize: bool) -> None:
        super().__init__()
        self.axes = axes
        self.normalize = normalize

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the products."""
        a, b = (each.movedim(axis, -1) for each, axis in zip(inputs, self.axes, strict=True))
        if self.normalize:
            a, b = (nn.functional.normalize(each, dim=-1, eps=1e-6) for each in (a, b))
        if a.dim() == 2 and b.dim() == 2:
            return (a * b).sum(-1, keepdim=True)
        return a @ b.transpose(-1, -2)


def dot(layer: Any) -> Translation:
    """Translate a ``Dot`` of inputs with two dimensions, or with three."""
    axes = (layer.axes, layer.axes) if isinstance(layer.axes, int) else tuple(layer.axes)
    ranks = {len(shape) for shape in (layer.get_build_config() or {}).get("input_shape", ())}
    if len(ranks) != 1 or not ranks <= {2, 3} or layer.normalize:
        raise UnsupportedError("expected two inputs of two dimensions, or of three, that are not normalised")
    return drops(Dotted(axes, normalize=False))
