"""Calls of functions of two operands, at least one of which varies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from passes.operations.contract import Lowering, Textbook, Varies
from passes.operations.pairwise.atom import Pairwise


def _pair(function: str) -> Lowering:
    def lower(varies: Varies, input: Any, other: Any) -> Textbook:
        # Not linear either where one operand is the same for all rows.
        return Pairwise(function), (input, other)

    return lower


CALLS: Mapping[Any, Lowering] = {
    **dict.fromkeys((torch.maximum, "maximum"), _pair("maximum")),
    **dict.fromkeys((torch.minimum, "minimum"), _pair("minimum")),
    **dict.fromkeys((torch.fmax, "fmax"), _pair("fmax")),
    **dict.fromkeys((torch.fmin, "fmin"), _pair("fmin")),
}
