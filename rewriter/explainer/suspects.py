"""Find the operation that no rule covers, when attributions do not sum to what they explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.lowering.running_code import run_quietly
from passes.user_code.clone import frozen_clone
from passes.user_code.source import where_failed, with_line
from rewriter.compiler.islands import islands_of
from rewriter.compiler.report import Report
from rewriter.compiler.uncovered import uncovered_calls
from rewriter.diagnosis.followed import Flow
from rewriter.diagnosis.local_gaps import ROUNDING, Gaps, gaps_of_sample
from rewriter.diagnosis.refused_gradients import where_refused
from rewriter.diagnosis.run import doubled, engine_rules, in_double
from rewriter.engine.contexts import context_inputs, in_context
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.explainer.original import Original

_SAMPLES = 4
_REFERENCES = 8
_NONE = (
    "Every operation that could be examined passes on all that it gets; look for operations in the model's "
    "own code, or in output=, that mix rows of the batch or have no rule, or sequences of different length."
)


def first_break(target: Target, problem: Problem, row: int, column: int) -> str:
    """Name the first operation that loses a part of an output, between few samples and references.

    Args:
        target: what was explained.
        problem: what was asked.
        row: the sample whose attributions do not add up; others are looked at after it.
        column: the output, among all.

    """
    # The linked copy has no report; without one there are no islands.
    model = target.followed or target.rewritten or target.model
    islands, select = islands_of(model), partial(_one, target.select, column)
    try:
        contexts = context_inputs(target, problem)
        for k in [row, *(each for each in range(min(_SAMPLES, problem.rows)) if each != row)]:
            sample = [each[k : k + 1] for each in problem.samples]
            background = [each[:_REFERENCES] for each in problem.references_of(k)]
            found = _gaps(model, islands, select, sample, in_context(sample, background, contexts))
            for flow in _explained(found.flows, target.interim):
                if found.loses(flow, _tolerance(sample)):
                    return f"The first operation without an exact rule is {_shown(flow)}."
        picked = _first_of_output(model, partial(_one, target.select, column), problem, row)
        if picked:
            return picked
    except RewriteError as error:
        return f"{str(error)[:1].upper()}{str(error)[1:]}."
    except Exception as error:
        return f"What loses it cannot be told: the model fails with {type(error).__name__}: {error}."
    known = _without_rule(model, problem.samples)
    return f"Without a rule: {known}." if known else _NONE


def _first_of_output(model: nn.Module, select: Callable[[Any], Any], problem: Problem, row: int) -> str:
    """Name what loses a part in the function ``output=`` that is applied to what the model returns."""
    sample = [each[row : row + 1] for each in problem.samples]
    background = [each[:_REFERENCES] for each in problem.references_of(row)]
    whole = _WithOutput(frozen_clone(model), select)
    with torch.inference_mode(False):
        found = gaps_of_sample(whole, _itself, sample, background, engine_rules, "samples", 1, [""])
    for flow in found.flows:
        if found.loses(flow, _tolerance(sample)):
            return f"The first operation without an exact rule is in output= {_shown(flow, '')}."
    return ""


class _WithOutput(nn.Module):
    """A model, whose own calls nobody sees, and what is computed of its output."""

    def __init__(self, model: nn.Module, select: Callable[[Any], Any]) -> None:
        super().__init__()
        self.select = select
        # No part of this, whose calls would be seen.
        self.run = partial(model.__call__)

    def forward(self, *inputs: Tensor) -> Any:
        return self.select(run_quietly(self.run, *inputs))


def _itself(output: Any) -> Any:
    return output


@contextmanager
def telling_why(target: Target, original: Original, samples: Inputs) -> Iterator[None]:
    """Let what goes wrong while samples are explained say what to do, and nothing write to the weights.

    Args:
        target: what is explained.
        original: the user's own code.
        samples: the inputs.

    Raises:
        RewriteError: for whatever the model raises, and if weights were written to.

    """
    versions = target.weights.versions()
    try:
        yield
    except Exception as error:
        target.weights.check_unwritten(versions)
        if isinstance(error, RewriteError):
            with_line(error)
        if isinstance(error, RewriteError | MemoryError | Warning | torch.OutOfMemoryError):
            raise
        raise RewriteError(why_not_explained(target, original, samples, error)) from error
    target.weights.check_unwritten(versions)


def why_not_explained(target: Target, original: Original, samples: Inputs, error: Exception) -> str:
    """Say where an explanation failed that torch has refused, and what in the model has no rule."""
    where = where_refused(error, original.explained, original.select, samples)
    model = target.followed or target.rewritten or target.model
    known = _without_rule(model, samples)
    advice = f"; without a rule: {known}" if known else ""
    return (
        f"explaining fails {where}: {type(error).__name__}: {error}{advice}. A model is "
        "explained by a run with gradients, through operations that have a rule or a gradient of torch's"
    )


def why_not_run(data: Inputs, error: Exception) -> str:
    """Say where a model failed to run the background, and on what."""
    got = ", ".join(f"{tuple(each.shape)} of {each.dtype}" for each in data)
    return (
        f"background: the model, or output=, fails on inputs {got}: {type(error).__name__}: {error}, "
        f"{where_failed(error)}; pass rows of what the model takes, and an output= that fits what it returns"
    )


def _without_rule(model: nn.Module, samples: Inputs) -> str:
    """List what the report of a rewritten model, or a run of its code, knows to have no rule."""
    try:
        without = [*Report.of(model).uncovered]
        without += uncovered_calls(model, islands_of(model), tuple(each.clone() for each in samples), {})
    except Exception:
        without = []
    names = (f"{each.operation} ({each.source})" if each.source else each.operation for each in without)
    return ", ".join(dict.fromkeys(names))


def _gaps(
    model: nn.Module, islands: list[str], select: Callable[[Any], Any], sample: Inputs, references: Inputs
) -> Gaps:
    """Return what is lost in float64, where rounding is nothing, unless the model does not run so."""
    with torch.inference_mode(False):
        try:
            wide = doubled(sample), doubled(references)
            return gaps_of_sample(in_double(model), select, *wide, engine_rules, "samples", 1, islands)
        except Exception:
            # Its code may name a dtype.
            copy = frozen_clone(model)
            return gaps_of_sample(copy, select, sample, references, engine_rules, "samples", 1, islands)


def _tolerance(sample: Inputs) -> float:
    """Return what is no reason for an error, relative to the largest flow."""
    wide = any(each.dtype == torch.float64 for each in sample)
    return ROUNDING[torch.float64 if wide else torch.float32]


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


def _shown(flow: Flow, where: str = "in the model itself") -> str:
    call = flow.call
    inside = ", ".join(filter(None, (call.operation, call.source)))
    reason = f": {flow.reason}" if flow.reason else ""
    return f"{call.name or where} ({inside}){reason}".lstrip()
