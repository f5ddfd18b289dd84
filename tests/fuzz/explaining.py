"""Explanations sum to what they explain, or an error names what has no rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter import DeepExplainer
from tests.fuzz.judging import HELD, Violation, judged, must_name, picture, unchanged
from tests.fuzz.programs import Program

# Of the largest output, or of all that it is split into: some hundred roundings.
TOLERANCE = 1e-9


def outputs(program: Program, inputs: list[Tensor]) -> Any:
    """Return what the user's own code gives, made anew."""
    space = program.build()
    with torch.no_grad():
        found = space.model(*(each.clone() for each in inputs))
    return (found if program.output is None else found[program.output]).numpy()


def _close(got: Any, expected: Any, scale: Any) -> bool:
    return bool((np.abs(got - expected) <= TOLERANCE * np.maximum(1.0, scale)).all())


def sums_up(program: Program) -> str:
    """Judge ``DeepExplainer``: sums, rows by themselves, a feature that is ignored, what is left behind."""
    space = program.build()
    single = len(space.x) == 1
    before = picture(space)
    try:
        with judged("DeepExplainer"):
            explainer = DeepExplainer(
                space.model,
                space.background[0] if single else space.background,
                output=program.output,
                progress=False,
            )
            values = explainer.shap_values(space.x[0] if single else space.x)
            alone = explainer.shap_values(space.x[0][1:2] if single else [each[1:2] for each in space.x])
        unchanged(space, before, "DeepExplainer")
    except RewriteError as error:
        unchanged(space, before, "DeepExplainer, which refuses,")
        return must_name(error, program, culprit=not program.couples_rows)
    if program.unstable:
        return HELD
    values, alone = ([values], [alone]) if single else (values, alone)
    f, f0 = outputs(program, space.x), outputs(program, space.background)
    flat = [each.reshape(len(f), -1, f.shape[1]) for each in values]
    parts = sum(np.abs(each).sum(1) for each in flat)
    scale = np.maximum(np.abs(f), np.abs(f0).max(0)) + parts
    if not _close(sum(each.sum(1) for each in flat), f - f0.mean(0), scale):
        raise Violation("the attributions do not sum up, and nothing is said")
    if not all(_close(a[0], b[1], scale.max()) for a, b in zip(alone, values, strict=True)):
        raise Violation("the attributions of a sample hang on the other samples")
    if program.ignores and np.any(values[0][..., -1, :] != 0):
        raise Violation("a feature that the model ignores gets attributions")
    return HELD
