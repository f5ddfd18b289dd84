"""Run what is to be diagnosed: each sample, with its references read in its context, in either precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import DeclinedError, InputError, RewriteError
from passes.operations.table import rule_of_module
from passes.user_code.clone import frozen_clone
from passes.user_code.observe import Call
from passes.user_code.source import where_failed, with_line
from passes.user_code.twin import Twin
from rewriter.compiler.first_calls import prove_first
from rewriter.compiler.islands import islands_of
from rewriter.compiler.report import Report
from rewriter.compiler.uncovered import is_covered
from rewriter.diagnosis.advice import Advice
from rewriter.diagnosis.coupled_rows import check_rows_apart
from rewriter.diagnosis.local_gaps import Gaps, Half, gaps_of_sample
from rewriter.diagnosis.refused_gradients import where_refused
from rewriter.diagnosis.stock import StockRules
from rewriter.engine.contexts import context_inputs, in_context
from rewriter.engine.linked_modules import linked_copy
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.rules import PairRule
from rewriter.engine.weights import SharedWeights

# Outputs that are followed of each sample, those that change most.
_OUTPUTS = 8


class Run:
    """What is diagnosed: a copy of a model, on samples whose references are read in their contexts.

    Args:
        model: the model.
        select: picks the tensor to explain.
        samples: one tensor per input.
        references: likewise.
        hooked: whether stock shap finds the modules of the model, and has its rules for them.

    """

    def __init__(
        self,
        model: nn.Module,
        select: Callable[[Any], Any],
        samples: Inputs,
        references: Inputs,
        *,
        hooked: bool = True,
    ) -> None:
        prove_first(model, samples)
        self.given = model
        self.select = select
        self.model = frozen_clone(model)
        self.islands = islands_of(model) if _is_decomposed(model) else None
        self.rules: Any = StockRules(hooked=hooked) if self.islands is None else engine_rules
        with self._own_precision(references):
            contexts = self._contexts(samples, references)
        rows = ([each[k : k + 1] for each in samples] for k in range(samples[0].shape[0]))
        self.pairs = [(row, in_context(row, references, contexts)) for row in rows]

    def _contexts(self, samples: Inputs, references: Inputs) -> list[int]:
        if all(each.is_floating_point() for each in samples):
            return []
        copy = linked_copy(self.given)
        target = Target(copy, SharedWeights(self.given, copy), self.select, tokens=True, stateful=True)
        chosen = torch.zeros(samples[0].shape[0], 1).int()
        try:
            return context_inputs(target, Problem(samples, references, chosen))
        except RewriteError:
            raise
        except Exception as error:
            raise _failing(references, error, where_failed(error)) from error

    def gaps(self, model: nn.Module, *, wide: bool = False) -> list[Gaps]:
        """Follow the multipliers of each sample."""
        found = []
        for sample, references in self.pairs:
            if wide:
                sample, references = doubled(sample), doubled(references)
            with self._own_precision(references):
                found.append(_of_sample(model, self.select, sample, references, self.rules, self.islands))
        return found

    def in_float64(self) -> list[Gaps] | None:
        """Return what is left in float64, in which rounding is nothing; None if the model does not run so."""
        if all(each.dtype == torch.float64 for each in self.pairs[0][0] if each.is_floating_point()):
            return None
        calls = self.rules.calls.copy() if self.islands is None else {}
        try:
            return self.gaps(in_double(self.model), wide=True)
        except Exception:
            # Its code may name a dtype.
            return None
        finally:
            if self.islands is None:
                self.rules.calls = calls

    def _own_precision(self, references: Inputs) -> ExitStack:
        """Switch off what the caller may have on: attributions are differences, and need gradients."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(references[0].device.type, enabled=False))
        return stack

    def advice(self) -> Advice:
        """Return what is known of the model beside what it loses."""
        calls = {} if self.islands is not None else self.rules.calls
        counts = {name: count // len(self.pairs) for name, count in calls.items()}
        return Advice(self.given, decomposed=self.islands is not None, calls=counts)


def _of_sample(
    model: nn.Module,
    select: Callable[[Any], Any],
    sample: Inputs,
    references: Inputs,
    rules: Any,
    islands: list[str] | None,
) -> Gaps:
    try:
        # Where there is no rule, our explainer has the gradient at the sample, stock shap at the reference.
        half: Half = "references" if islands is None else "samples"
        return gaps_of_sample(model, select, sample, references, rules, half, _OUTPUTS, islands)
    except DeclinedError:
        raise
    except Exception as error:
        if isinstance(error, RewriteError) and not isinstance(error, InputError):
            raise
        # Samples and references run together: a model may take some numbers of rows only.
        check_rows_apart(frozen_clone(model), select, references)
        if isinstance(error, InputError):
            with_line(error)
            raise
        raise _failing(references, error, where_refused(error, model, select, references)) from error


def _failing(references: Inputs, error: Exception, where: str) -> RewriteError:
    got = ", ".join(f"{tuple(each.shape)} of {each.dtype}" for each in references)
    return RewriteError(
        f"the model, or output=, fails on inputs {got}: {type(error).__name__}: {error}, {where}"
    )


def _is_decomposed(model: nn.Module) -> bool:
    try:
        Report.of(model)
    except RewriteError:
        return False
    return True


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


def in_double(model: nn.Module) -> nn.Module:
    """Return a copy of a model in float64.

    Example:
        >>> in_double(nn.Linear(1, 1)).weight.dtype
        torch.float64

    """
    return Twin(model).model.double().requires_grad_(False)


def doubled(inputs: Inputs) -> Inputs:
    """Return inputs in float64, integers as they are.

    Example:
        >>> [each.dtype for each in doubled([torch.ones(1), torch.ones(1).int()])]
        [torch.float64, torch.int32]

    """
    return [each.double() if each.is_floating_point() else each for each in inputs]
