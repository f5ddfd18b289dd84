"""``diagnose``: which operations of a model break the additivity of its attributions, worst first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.operations.operation import RANDOM
from passes.user_code.clone import frozen_clone
from rewriter.compiler.report import printable, render_table
from rewriter.diagnosis.advice import Advice
from rewriter.diagnosis.coupled_rows import why_coupled
from rewriter.diagnosis.followed import Flow
from rewriter.diagnosis.local_gaps import ROUNDING, Gaps
from rewriter.diagnosis.run import Run
from rewriter.inputs import Model, as_inputs, as_module, check_like, selecting
from rewriter.keras.replacements import in_torch

_SHOWN = 20
# Less than that of an error is left in float64 if much of it is rounding.
_MUCH = 0.5
_MORE = "the rows of a batch differ in more than their inputs, random numbers for example"


@dataclass(frozen=True)
class DiagnosedOperation:
    """What one operation does to the sum of the attributions.

    Args:
        name: qualified name of the module that is called, or in whose code the call stands; name of the
            node in a decomposed graph.
        operation: class of the module, or function or method.
        source: file and line of the call, ``""`` if no code of the user's makes it.
        flows_in: Σ multiplier · Δ over its operands, for the sample and output where it loses most.
        flows_out: Σ multiplier · Δ of its result, which should be the same.
        gap: the largest difference of the two, over samples and outputs.
        share: of the sum of all gaps.
        advice: what it is and what helps; ``""`` where nothing is lost.
        is_rounding: whether the gap is what rounding leaves: no larger than the numbers of the call explain,
            or gone in float64.

    """

    name: str
    operation: str
    source: str
    flows_in: float
    flows_out: float
    gap: float
    share: float
    advice: str
    is_rounding: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` shows what breaks additivity, ``bool`` is the verdict.

    Args:
        rows: all operations on what varies, worst first.
        total: the additivity error of the model: the largest difference between the sum of the attributions
            and what they have to sum to, over samples and outputs.
        scale: the largest output, to which errors compare.
        tolerance: relative to the scale; errors below are rounding.
        explainer: whose rules were followed.
        unexplained: what the rows do not account for: it is rounding unless rows of a batch differ in more
            than their inputs, as they do where random numbers are drawn.
        in_float64: the additivity error of the same model in float64; None where its own dtype leaves no
            doubt, or it does not run in float64.
        coupled: where rows of a batch influence each other, if that leaves something unexplained.

    """

    rows: tuple[DiagnosedOperation, ...]
    total: float
    scale: float
    tolerance: float
    explainer: str
    unexplained: float
    in_float64: float | None = None
    coupled: str = ""

    @property
    def broken(self) -> tuple[DiagnosedOperation, ...]:
        """The operations that lose more than rounding."""
        return tuple(row for row in self.rows if not row.is_rounding)

    @property
    def _unaccounted(self) -> bool:
        # Not 'greater than', which is False for NaN.
        return not self.unexplained <= self.tolerance * self.scale

    def __bool__(self) -> bool:
        """Whether attributions add up: no operation loses more than rounding, and none is lost elsewhere."""
        return not self.broken and not self._unaccounted

    def __str__(self) -> str:
        head = f"additivity error of {self.explainer}: {self.total:.1e}, largest output {self.scale:.1e}"
        if self.in_float64 is not None and self.in_float64 < _MUCH * self.total:
            head += f", error in float64: {self.in_float64:.1e}"
        if self._unaccounted:
            reason = self.coupled or _MORE
            head += f"\n{self.unexplained:.1e} of it comes from no operation: {reason}"
        if not self.broken:
            return f"{head}\nevery operation passes on all that it gets, to rounding"
        rows = [
            (
                row.name or "(the model itself)",
                row.operation,
                row.source,
                f"{row.flows_in:.3g}",
                f"{row.flows_out:.3g}",
                f"{row.gap:.1e}",
                f"{row.share:.0%}",
                row.advice,
            )
            for row in self.broken[:_SHOWN]
        ]
        header = ("where", "operation", "at", "in", "out", "gap", "share", "what it is, and what helps")
        more = len(self.broken) - len(rows)
        lines = [head, "", render_table(header, rows), *([f"and {more} more"] if more else [])]
        return printable("\n".join(lines))

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain data, ready for ``json.dumps``."""
        return asdict(self)


def diagnose(
    model: Model,
    x: Any,
    background: Any,
    *,
    output: Callable[[Any], Tensor] | str | int | None = None,
) -> Diagnosis:
    """Find the operations at which DeepLIFT's attributions stop summing to what they explain.

    On a model as it is, the multipliers are those of stock ``shap.DeepExplainer``: its rules for the modules
    that it knows by class name, gradients for all else. On a decomposed model they are those of
    ``rewriter.DeepExplainer``, in code that torch.fx cannot follow, too. An operation with operands x and
    result y loses Σ m_y·Δy − Σ m_x·Δx, where m_x is what comes back through it alone (Shrikumar et al. 2017,
    the chain rule of multipliers); these gaps sum to the additivity error of the model.

    References are read with the lengths and masks of the sample, as the explainer reads them. What is lost in
    float32 is looked at in float64 again, where rounding is gone: only what lasts is called broken. The model
    is left as it is; it runs twice for each sample, and backwards once for each of the outputs (eight of them
    at most, those that change most).

    Args:
        model: any module, decomposed or not, whether torch.fx can follow it or not.
        x: samples, one tensor or array, or a list with one per input; floating point, or integers that the
            model looks up in an embedding.
        background: likewise.
        output: which part of what the model returns is explained: a key or index, or a function of it.

    Returns:
        A row per operation, worst first.

    Raises:
        RewriteError: for inputs that do not run, or a model whose code decides on values of its inputs.

    Example:
        >>> from torch import nn
        >>> class Model(nn.Module):
        ...     def forward(self, x):
        ...         return torch.softmax(2 * x, -1)
        >>> x, background = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
        >>> found = diagnose(Model(), x, background)
        >>> found.rows[0].operation, found.total > 0.1
        ('softmax', True)
        >>> import rewriter
        >>> bool(found), bool(diagnose(rewriter.decompose(Model()), x, background))
        (False, True)

    """
    # A model of Keras on torch: stock shap finds no modules of torch's in it, and takes gradients.
    made, origin = in_torch(model) if isinstance(model, nn.Module) else (model, None)
    model = as_module(made)
    if isinstance(x, list | tuple) != isinstance(background, list | tuple):
        raise RewriteError(
            f"x: expected {'a list' if isinstance(background, list | tuple) else 'one tensor'} like the "
            f"background, got {type(x).__name__}"
        )
    references = as_inputs(background, next(model.parameters(), None), "background")
    if not references or references[0].shape[0] == 0:
        raise RewriteError("background: expected at least one sample, got none")
    check_like(references, references, "background")
    samples = as_inputs(x, references, "x")
    check_like(samples, references, "x")
    if samples[0].shape[0] == 0:
        raise RewriteError("x: expected at least one sample, got none")
    select = selecting(output)
    run = Run(model, select, samples, references, hooked=origin is None)
    found = run.gaps(run.model)
    wide = run.in_float64() if any(each.in_doubt() for each in found) else None
    diagnosis = _diagnosis(found, wide, run.advice(), decomposed=run.islands is not None)
    if diagnosis.unexplained <= diagnosis.tolerance * diagnosis.scale:
        return diagnosis
    return replace(diagnosis, coupled=why_coupled(frozen_clone(model).eval(), select, references))


def _diagnosis(found: list[Gaps], wide: list[Gaps] | None, advice: Advice, *, decomposed: bool) -> Diagnosis:
    scale = max(each.scale for each in found)
    tolerance = ROUNDING[torch.float64 if found[0].double else torch.float32]
    worst = _worst(found)
    # What is no rounding is there in float64, too.
    judged = worst if wide is None else _worst(wide, tolerance)
    everything = sum(each.gap for each in worst.values()) or 1.0
    rows = []
    for key, each in worst.items():
        lost = key in judged and judged[key].loses
        tells = lost or each.flow.reason == RANDOM
        text = advice.of(each.flow.call, each.flow.reason) if tells else ""
        share = each.gap / everything
        rows.append(
            DiagnosedOperation(*key, each.flow_in, each.flow_out, each.gap, share, text, is_rounding=not lost)
        )
    # What is lost comes first, whatever rounding leaves elsewhere.
    rows.sort(key=lambda row: (not row.is_rounding, row.gap), reverse=True)
    return Diagnosis(
        tuple(rows),
        _total(found),
        scale,
        tolerance,
        "rewriter's rules" if decomposed else "stock shap.DeepExplainer",
        _unexplained(found if wide is None else wide),
        None if wide is None else _total(wide),
    )


def _total(found: list[Gaps]) -> float:
    return max(abs(gap) for each in found for gap in each.total)


def _unexplained(found: list[Gaps]) -> float:
    return max(
        abs(total + sum(flow.flows_out[k] - flow.flows_in[k] for flow in each.flows))
        for each in found
        for k, total in enumerate(each.total)
    )


@dataclass
class _Worst:
    """What one operation loses, for the sample and output where that is most."""

    flow: Flow
    flow_in: float
    flow_out: float
    gap: float
    loses: bool


def _worst(found: list[Gaps], tolerance: float = 0.0) -> dict[tuple[str, str, str], _Worst]:
    worst: dict[tuple[str, str, str], _Worst] = {}
    for gaps in found:
        for key, (flow, sums) in _by_operation(gaps, tolerance).items():
            for flow_in, flow_out, rounding in sums:
                gap = abs(flow_out - flow_in)
                # Not 'greater than', which is False for NaN.
                loses = not gap <= rounding
                kept = worst.get(key)
                if kept is None or (loses, not gap <= kept.gap) > (kept.loses, False):
                    worst[key] = _Worst(flow, flow_in, flow_out, gap, loses)
    return worst


def _by_operation(gaps: Gaps, tolerance: float) -> dict[tuple[str, str, str], tuple[Flow, list[list[float]]]]:
    """Add up the flows of all calls of one operation, as in a loop, and what they may lose.

    Args:
        gaps: of one sample.
        tolerance: what may be lost beside rounding, relative to the largest flow of an output.

    """
    sums: dict[tuple[str, str, str], tuple[Flow, list[list[float]]]] = {}
    for flow in gaps.flows:
        key = flow.call.name, flow.call.operation, flow.call.source
        each = [
            [a, b, gaps.rounding(flow, k)]
            for k, (a, b) in enumerate(zip(flow.flows_in, flow.flows_out, strict=True))
        ]
        if key in sums:
            for total, part in zip(sums[key][1], each, strict=True):
                total[:] = [a + b for a, b in zip(total, part, strict=True)]
        else:
            sums[key] = (
                flow,
                [[a, b, lost + tolerance * gaps.changes[k]] for k, (a, b, lost) in enumerate(each)],
            )
    return sums
