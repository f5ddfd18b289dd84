"""Find the operation that no rule covers, when attributions do not sum to what they explain."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.diagnosis.diagnose import ROUNDING, engine_rules
from rewriter.diagnosis.local_gaps import Flow, gaps_of_sample
from rewriter.engine.attribution import Target
from rewriter.engine.problem import Problem

_SAMPLES = 4
_REFERENCES = 8
# In units of the dtype.
_ROUNDINGS = 32
_NONE = (
    "Every operation that could be examined passes on all that it gets; look for operations in the model's "
    "own code that mix rows of the batch, or sequences of different length."
)


def first_break(target: Target, problem: Problem, row: int, column: int) -> str:
    """Name the first operation that loses a part of an output, between few samples and references.

    Args:
        target: what was explained.
        problem: what was asked.
        row: the sample whose attributions do not add up; others are looked at after it.
        column: the output, among all.

    """
    for k in [row, *(each for each in range(min(_SAMPLES, problem.rows)) if each != row)]:
        sample = [each[k : k + 1] for each in problem.samples]
        background = [each[:_REFERENCES] for each in problem.references_of(k)]
        try:
            with torch.inference_mode(False):
                found = gaps_of_sample(
                    target.model,
                    partial(_one, target.select, column),
                    sample,
                    background,
                    engine_rules,
                    "samples",
                    1,
                )
        except RewriteError as error:
            return f"{str(error)[:1].upper()}{str(error)[1:]}."
        dtype = torch.float64 if found.double else torch.float32
        passed = [abs(each) for flow in found.flows for each in (*flow.flows_in, *flow.flows_out)]
        # Of what is passed on, and of the level from which it is a change.
        change = max((each for each in passed if math.isfinite(each)), default=0.0)
        tolerance = ROUNDING[dtype] * change + _ROUNDINGS * torch.finfo(dtype).eps * found.scale
        for flow in _explained(found.flows, target.interim):
            # Not 'greater than', which is False for NaN.
            if not all(abs(b - a) <= tolerance for a, b in zip(flow.flows_in, flow.flows_out, strict=True)):
                return f"The first operation without an exact rule is {_shown(flow)}."
    return _NONE


def _one(select: Callable[[Any], Any], column: int, output: Any) -> Tensor:
    picked: Tensor = select(output)
    return picked.reshape(len(picked), -1)[:, column : column + 1]


def _explained(flows: list[Flow], interim: str | None) -> list[Flow]:
    """Return the flows behind the module whose inputs are explained."""
    if interim is None:
        return flows
    begin = next(
        (k for k, flow in enumerate(flows) if f"{flow.call.name}.".startswith(f"{interim}.")),
        0,
    )
    return flows[begin:]


def _shown(flow: Flow) -> str:
    call = flow.call
    inside = ", ".join(filter(None, (call.operation, call.source)))
    reason = f": {flow.reason}" if flow.reason else ""
    return f"{call.name or 'in the model itself'} ({inside}){reason}"
