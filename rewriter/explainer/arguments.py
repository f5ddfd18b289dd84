"""What users pass beside the data, in the form that is worked with."""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.errors import RewriteError
from rewriter.engine.problem import Inputs


def doubled(inputs: Inputs, multi_input: bool) -> Any:
    """Return inputs in float64, in the form in which a user gives them."""
    wide = [each.double() if each.is_floating_point() else each for each in inputs]
    return wide if multi_input else wide[0]


def bytes_of(max_memory: Any) -> int | None:
    """Return what to plan with: a fifth less, for what an allocator keeps and fragments."""
    if max_memory is None:
        return None
    if not (isinstance(max_memory, int | float | np.integer) and 0 < max_memory < 2**63):
        raise RewriteError(f"max_memory: expected a positive number of bytes, got {max_memory!r}")
    return int(0.8 * max_memory)


def tolerance_of(check_additivity: Any, *, wide: bool) -> float | None:
    """Return the tolerance; as for shap whatever is false asks for no check."""
    if isinstance(check_additivity, str):
        raise RewriteError(f"check_additivity: expected a bool or a tolerance, got {check_additivity!r}")
    if not check_additivity:
        return None
    if isinstance(check_additivity, float | np.floating):
        return float(check_additivity)
    return 1e-8 if wide else 1e-4
