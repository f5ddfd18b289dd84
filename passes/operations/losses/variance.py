"""A variance that belongs to a whole last dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from passes.leaves import Layout


class AsWide(Layout):
    """Gives a variance one dimension more, if it is that of a whole last dimension.

    Example:
        >>> import torch
        >>> AsWide()(torch.ones(4), torch.ones(4, 3)).shape
        torch.Size([4, 1])

    """

    def forward(self, var: Tensor, input: Tensor) -> Tensor:
        """Return the variance.

        Args:
            var: (*) or what broadcasts to the input.
            input: what it belongs to, (*, n).

        """
        return var.unsqueeze(-1) if input.dim() and var.shape == input.shape[:-1] else var


class OfVariance(nn.Module):
    """A loss that takes a variance which may have a dimension less.

    Args:
        loss: takes input, target and variance.

    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.wide = AsWide()

    def forward(self, input: Any, target: Any, var: Any) -> Any:
        """Return the loss."""
        return self.loss(input, target, self.wide(var, input))
