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


def _numbered(
    varies: Varies, input: Any, grid: Any, interpolation_mode: Any, padding_mode: Any, align_corners: Any
) -> Textbook | None:
    return _grid_sample(varies, input, grid, interpolation_mode, padding_mode, align_corners)


_NUMBERED = "(input, grid, interpolation_mode, padding_mode, align_corners)"

CALLS: tuple[Operation, ...] = tuple(
    described(signature, Kind.LINEAR, fixed=("grid",), lower=lower, fresh=True)
    for signature, lower in (
        ("grid_sample(input, grid, mode='bilinear', padding_mode='zeros', align_corners=None)", _grid_sample),
        (f"grid_sampler{_NUMBERED}", _numbered),
        (f"grid_sampler_2d{_NUMBERED}", _numbered),
        (f"grid_sampler_3d{_NUMBERED}", _numbered),
    )
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {GridSample: pulled(grid_pull)}
