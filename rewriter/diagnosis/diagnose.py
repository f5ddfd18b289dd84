"""``diagnose``: which operations of a model break the additivity of its attributions, worst first."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import DeclinedError, RewriteError
from passes.operations.operation import RANDOM
from passes.operations.table import rule_of_module
from passes.user_code.clone import frozen_clone
from passes.user_code.observe import Call
from rewriter.compiler.report import Report, render_table
from rewriter.compiler.uncovered import is_covered
from rewriter.diagnosis.advice import Advice
from rewriter.diagnosis.local_gaps import Flow, Gaps, Half, gaps_of_sample
from rewriter.diagnosis.stock import StockRules
from rewriter.engine.rules import PairRule
from rewriter.inputs import Model, as_inputs, as_module, check_like

# Outputs that are followed of each sample, those that change most.
_OUTPUTS = 8
#: Rounding of a long sum, relative to the largest output.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
_SHOWN = 20


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

    """

    name: str
    operation: str
    source: str
    flows_in: float
    flows_out: float
    gap: float
    share: float
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` shows the operations that break additivity.

    Args:
        rows: all operations on what varies, worst first.
        total: the additivity error of the model: the largest difference between the sum of the attributions
            and what they have to sum to, over samples and outputs.
        scale: the largest output, to which errors compare.
        tolerance: relative to the scale; gaps below are rounding.
        explainer: whose rules were followed.
        unexplained: what the rows do not account for: it is rounding unless rows of a batch differ in more
            than their inputs, as they do where random numbers are drawn.

    """

    rows: tuple[DiagnosedOperation, ...]
    total: float
    scale: float
    tolerance: float
    explainer: str
    unexplained: float

    @property
    def broken(self) -> tuple[DiagnosedOperation, ...]:
        """The operations that lose more than rounding."""
        return tuple(row for row in self.rows if not row.gap <= self.tolerance * self.scale)

    def __str__(self) -> str:
        head = f"additivity error of {self.explainer}: {self.total:.1e}, largest output {self.scale:.1e}"
        if not self.unexplained <= self.tolerance * self.scale:
            head += (
                f"\n{self.unexplained:.1e} of it comes from no operation: the rows of a batch differ in more "
                "than their inputs, random numbers for example"
            )
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
        return "\n".join([head, "", render_table(header, rows), *([f"and {more} more"] if more else [])])

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
    ``rewriter``. An operation with operands x and result y loses Σ m_y·Δy − Σ m_x·Δx, where m_x is what
    comes back through it alone (Shrikumar et al. 2017, the chain rule of multipliers); these gaps sum to the
    additivity error of the model. The model is left as it is; it runs twice for each sample, and backwards
    once for each of the outputs (eight at most, those that change most).

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
        >>> class Model(nn.Module):
        ...     def forward(self, x):
        ...         return torch.softmax(2 * x, -1)
        >>> x, background = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
        >>> found = diagnose(Model(), x, background)
        >>> found.rows[0].operation, found.total > 0.1
        ('softmax', True)
        >>> import rewriter
        >>> bool(diagnose(rewriter.decompose(Model()), x, background).broken)
        False

    """
    model = as_module(model)
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
    decomposed = _is_decomposed(model)
    half: Half = "references"
    copy = frozen_clone(model)
    rules: Any = engine_rules if decomposed else StockRules()
    select = _select(output)
    with torch.inference_mode(False), torch.autocast(references[0].device.type, enabled=False):
        found = [
            _of_sample(copy, select, [each[k : k + 1] for each in samples], references, rules, half)
            for k in range(samples[0].shape[0])
        ]
    counts = {} if decomposed else {name: n // samples[0].shape[0] for name, n in rules.calls.items()}
    advice = Advice(model, decomposed=decomposed, calls=counts)
    return _diagnosis(found, advice, decomposed=decomposed)


def _of_sample(
    model: nn.Module,
    select: Callable[[Any], Any],
    sample: list[Tensor],
    references: list[Tensor],
    rules: Any,
    half: Half,
) -> Gaps:
    try:
        return gaps_of_sample(model, select, sample, references, rules, half, _OUTPUTS)
    except (RewriteError, DeclinedError):
        raise
    except Exception as error:
        got = ", ".join(f"{tuple(each.shape)} of {each.dtype}" for each in references)
        raise RewriteError(
            f"the model, or output=, fails on inputs {got}: {type(error).__name__}: {error}"
        ) from error


def _select(output: Any) -> Callable[[Any], Any]:
    if output is None:
        return lambda result: result
    return output if callable(output) else operator.itemgetter(output)


def _is_decomposed(model: nn.Module) -> bool:
    try:
        Report.of(model)
    except RewriteError:
        return False
    return True


def _diagnosis(found: list[Gaps], advice: Advice, *, decomposed: bool) -> Diagnosis:
    scale = max(each.scale for each in found)
    total = max(abs(gap) for each in found for gap in each.total)
    unexplained = max(
        abs(total + sum(flow.flows_out[k] - flow.flows_in[k] for flow in each.flows))
        for each in found
        for k, total in enumerate(each.total)
    )
    tolerance = ROUNDING[torch.float64 if found[0].double else torch.float32]
    worst: dict[tuple[str, str, str], tuple[float, float, float, Flow]] = {}
    for each in found:
        for key, (flow, sums) in _by_operation(each.flows).items():
            for flow_in, flow_out in sums:
                gap = abs(flow_out - flow_in)
                # Not 'greater than', which is False for NaN.
                if key not in worst or not gap <= worst[key][0]:
                    worst[key] = gap, flow_in, flow_out, flow
    everything = sum(gap for gap, *_ in worst.values()) or 1.0
    rows = [
        DiagnosedOperation(
            *key,
            flow_in,
            flow_out,
            gap,
            gap / everything,
            "" if gap <= tolerance * scale and flow.reason != RANDOM else advice.of(flow.call, flow.reason),
        )
        for key, (gap, flow_in, flow_out, flow) in worst.items()
    ]
    rows.sort(key=lambda row: row.gap, reverse=True)
    explainer = "rewriter's rules" if decomposed else "stock shap.DeepExplainer"
    return Diagnosis(tuple(rows), total, scale, tolerance, explainer, unexplained)


def _by_operation(flows: list[Flow]) -> dict[tuple[str, str, str], tuple[Flow, list[list[float]]]]:
    """Add up the flows of all calls of one operation, as in a loop, for each output."""
    sums: dict[tuple[str, str, str], tuple[Flow, list[list[float]]]] = {}
    for flow in flows:
        key = flow.call.name, flow.call.operation, flow.call.source
        pairs = [list(pair) for pair in zip(flow.flows_in, flow.flows_out, strict=True)]
        if key in sums:
            for total, pair in zip(sums[key][1], pairs, strict=True):
                total[0] += pair[0]
                total[1] += pair[1]
        else:
            sums[key] = flow, pairs
    return sums


def engine_rules(
    call: Call, args: tuple[Any, ...], args0: list[Tensor], result: Any, result0: list[Tensor]
) -> Any:
    """Return ``result`` with the multipliers of the rule of the module that was called, if it has one."""
    rule = rule_of_module(call.function) if is_covered(call.function) else None
    if rule is None or not all(isinstance(each, Tensor) for each in args) or not isinstance(result, Tensor):
        return result
    # The model may write to them before the backward pass.
    args = tuple(each.clone() for each in args)
    return PairRule.apply(rule, (result.detach(), result0[0]), len(args), *args, *args0)  # type: ignore[no-untyped-call]
