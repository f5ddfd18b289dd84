"""Calls that read between places. They are linear unless the places vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from passes.operations.contract import Build, Rule, Textbook, Varies, is_plain, pulled
from passes.operations.operation import Kind, Operation, described
from passes.operations.sampling.atom import MODES, PADDINGS, GridSample
from passes.operations.sampling.rule import grid_pull


def _grid_sample(
    varies: Varies,
    input: Any,
    grid: Any,
    mode: Any = "bilinear",
    padding_mode: Any = "zeros",
    align_corners: Any = None,
) -> Textbook | None:
    if not all(map(is_plain, (mode, padding_mode, align_corners))):
        return None
    mode = MODES[mode] if isinstance(mode, int) else mode
    padding_mode = PADDINGS[padding_mode] if isinstance(padding_mode, int) else padding_mode
    return GridSample(mode, padding_mode, align_corners), (input, grid)


CALLS: tuple[Operation, ...] = (
    *(
        described(
            f"{name}(input, grid, mode='bilinear', padding_mode='zeros', align_corners=None)",
            Kind.LINEAR,
            renamed={"interpolation_mode": "mode"},
            fixed=("grid",),
            lower=_grid_sample,
            fresh=True,
        )
        for name in ("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {GridSample: pulled(grid_pull)}
