"""Normalisation by statistics of the input itself: LayerNorm, RMSNorm, GroupNorm, InstanceNorm.

BatchNorm in evaluation mode is linear, and so is an InstanceNorm with running statistics. BatchNorm
without them takes the statistics of the batch at hand, in which samples and references are mixed: no
rule for one row exists, and it stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom, Mul
from passes.operations.elementwise.atom import Elementwise
from passes.stand_in import StandIn


class Standardize(Atom):
    """``(x - mean) / sqrt(variance + eps)`` over the last dimensions, or ``x`` over its root mean square.

    Args:
        over: the sizes of the last dimensions, or the first of these dimensions.
        eps: added to the variance; None for the precision of the dtype.
        centred: whether the mean is taken off.

    Example:
        >>> Standardize((2,))(torch.tensor([[-2.0, 2.0]]))
        tensor([[-1.0000,  1.0000]])

    """

    def __init__(self, over: tuple[int, ...] | int, eps: float | None = 1e-5, centred: bool = True) -> None:
        super().__init__()
        self.over = over
        self.eps = eps
        self.centred = centred

    def forward(self, input: Tensor) -> Tensor:
        """Return the standardised input, any shape that ends in ``over``."""
        sizes = input.shape[self.over :] if isinstance(self.over, int) else self.over
        if self.centred:
            return F.layer_norm(input, sizes, eps=self.eps or 0.0)
        return F.rms_norm(input, sizes, eps=self.eps)

    def dims(self, rank: int) -> tuple[int, ...]:
        """Return the dimensions of an input of ``rank`` dimensions, as negative numbers.

        Example:
            >>> Standardize(2).dims(4), Standardize((5, 6)).dims(4)
            ((-2, -1), (-2, -1))

        """
        first = self.over if isinstance(self.over, int) else -len(self.over)
        return tuple(range(first if first < 0 else first - rank, 0))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.over}, eps={self.eps}, centred={self.centred}"


class Scaled(nn.Module):
    """What a function of torch.nn.functional does: standardise, then apply weight and bias.

    Args:
        standardize: of the input, which has its channels in dimension 1 if they are ``channels``.
        groups: standardise so many groups of channels, each as a whole; 0 to leave the shape alone.
        channels: weight and bias belong to dimension 1, not to the last ones.

    """

    def __init__(self, standardize: Standardize, groups: int = 0, channels: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        self.groups = groups
        self.channels = channels

    def forward(self, input: Tensor, weight: Tensor | float, bias: Tensor | float) -> Tensor:
        """Return the standardised input times ``weight`` plus ``bias``."""
        groups, standardize = self.groups, self.standardize
        standard: Tensor = by_groups(standardize, input, groups) if groups else standardize(input)
        if self.channels:
            return (standard.transpose(1, -1) * weight + bias).transpose(1, -1)
        return standard * weight + bias


def by_groups(standardize: Standardize, input: Tensor, groups: int) -> Tensor:
    """Standardise each of the groups into which the channels of ``input``, (B, C, *), fall."""
    grouped = torch.unflatten(input, 1, (groups, -1)).flatten(2)
    standard: Tensor = standardize(grouped).reshape(input.shape)
    return standard


class LayerNormAtoms(StandIn, nn.LayerNorm):
    """An ``nn.LayerNorm`` made of an atom and its weights."""

    standardize: Standardize

    def forward(self, input: Tensor) -> Tensor:
        """Return what the original returns for ``input``, any shape that ends in its own."""
        standard: Tensor = self.standardize(input)
        scaled = standard if self.weight is None else standard * self.weight
        return scaled if self.bias is None else scaled + self.bias


class RMSNormAtoms(StandIn, nn.RMSNorm):
    """An ``nn.RMSNorm`` made of an atom and its weight."""

    standardize: Standardize

    def forward(self, x: Tensor) -> Tensor:
        """Return what the original returns for ``x``, any shape that ends in its own."""
        standard: Tensor = self.standardize(x)
        return standard if self.weight is None else standard * self.weight


class GroupNormAtoms(StandIn, nn.GroupNorm):
    """An ``nn.GroupNorm`` made of an atom and its weights."""

    standardize: Standardize

    def forward(self, input: Tensor) -> Tensor:
        """Return what the original returns for ``input``, (B, C, *)."""
        standard = by_groups(self.standardize, input, self.num_groups)
        return _per_channel(self, standard, 1)


class InstanceNormAtoms(StandIn):
    """An InstanceNorm without running statistics, made of an atom and its weights."""

    standardize: Standardize
    space: int

    def forward(self, input: Tensor) -> Tensor:
        """Return what the original returns for ``input``, (B, C, *) or (C, *)."""
        return _per_channel(self, self.standardize(input), -self.space - 1)


class InstanceNorm1dAtoms(InstanceNormAtoms, nn.InstanceNorm1d):
    """The same for ``nn.InstanceNorm1d``."""

    space = 1


class InstanceNorm2dAtoms(InstanceNormAtoms, nn.InstanceNorm2d):
    """The same for ``nn.InstanceNorm2d``."""

    space = 2


class InstanceNorm3dAtoms(InstanceNormAtoms, nn.InstanceNorm3d):
    """The same for ``nn.InstanceNorm3d``."""

    space = 3


class LocalResponseNormAtoms(nn.Module):
    """``nn.LocalResponseNorm``: a product with a power of the mean square of the channels around.

    Args:
        size: number of channels around.
        alpha: factor of the mean square.
        beta: exponent.
        k: added to the mean square.

    """

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k
        self.square = Elementwise("square")
        self.power = Elementwise("pow", exponent=-beta)
        self.product = Mul()

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised ``input``, (B, C, *)."""
        squares = self.square(input).flatten(2).unsqueeze(1)
        around = F.pad(squares, (0, 0, self.size // 2, (self.size - 1) // 2))
        means = F.avg_pool2d(around, (self.size, 1), stride=1).squeeze(1).reshape(input.shape)
        normalised: Tensor = self.product(input, self.power(means * self.alpha + self.k))
        return normalised


def _per_channel(norm: Any, standard: Tensor, channel: int) -> Tensor:
    if norm.weight is None:
        return standard
    scaled: Tensor = standard.transpose(channel, -1) * norm.weight
    return (scaled if norm.bias is None else scaled + norm.bias).transpose(channel, -1)
