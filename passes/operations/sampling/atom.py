"""Interpolation at places that are given."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from passes.leaves import Atom

#: As torch.ops.aten counts them.
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


class GridSample(Atom):
    """What stands in an image, or in a volume, at the places of a grid.

    Args:
        mode: of interpolation, as for ``F.grid_sample``.
        padding_mode: what stands outside.
        align_corners: whether -1 and 1 are the middle of the outermost numbers.

    Example:
        >>> import torch
        >>> GridSample()(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 2))
        tensor([[[[1.]]]])

    """

    def __init__(
        self, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
    ) -> None:
        super().__init__()
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners

    def forward(self, input: Tensor, grid: Tensor) -> Tensor:
        """Return (N, C, *places) of ``input``, (N, C, *space), for a ``grid``, (N, *places, 2 or 3)."""
        return F.grid_sample(input, grid, self.mode, self.padding_mode, bool(self.align_corners))

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{self.mode}, padding_mode={self.padding_mode}, align_corners={self.align_corners}"
