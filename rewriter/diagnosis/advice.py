"""What to do about an operation that breaks additivity."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from passes.errors import PassError
from passes.leaves import Atom
from passes.operations.catalogue import operation_of
from passes.operations.operation import CUTS, FIXED, RANDOM, ROWS
from passes.user_code.observe import Call
from rewriter.compiler.decompose import decompose
from rewriter.compiler.report import Report
from rewriter.compiler.uncovered import WITHOUT_GRADIENTS

_HELPS = {
    WITHOUT_GRADIENTS: "nothing behind it has attributions: let it run with them",
    CUTS: "it has no attributions behind it: remove it",
    RANDOM: "make it deterministic",
    ROWS: "use running statistics",
    FIXED: "make it an input of its own, or the same for samples and references",
}
_UNKNOWN = "linear or with a rule, and yet not additive: does the code mix rows, or keep state?"


class Advice:
    """Knows what decompose does with each part of a model.

    Args:
        model: the model.
        decomposed: whether decompose made it.
        calls: how often each module that stock shap has a rule for is called in one run.

    """

    def __init__(self, model: nn.Module, *, decomposed: bool, calls: Mapping[str, int]) -> None:
        self.decomposed = decomposed
        self.calls = calls
        self.report = Report.of(model) if decomposed else _report(model)

    def of(self, call: Call, reason: str | None) -> str:
        """Say what is wrong with a call that loses something, and what helps."""
        report = self.report
        if report is None:
            return reason or "decompose does not take the model"
        for decline in report.declines:
            if decline.name == call.name:
                return f"decompose declines it: {decline.reason}"
        if self.decomposed:
            return self._decomposed(call, reason)
        if reason == WITHOUT_GRADIENTS:
            # No rule gets to what runs so.
            return _with_help(reason)
        times = self.calls.get(call.name, 0)
        if times > 1:
            return f"called {times} times, stock shap keeps the last; decompose gives each call its own rule"
        names = {each.name for each in report.layers} | {each.name for each in report.operations}
        if isinstance(call.function, nn.Module):
            inside = any(call.name.startswith(f"{name}.") for name in names if name)
            if call.name in names or inside or isinstance(call.function, Atom):
                return "decompose rewrites it into operations with exact rules"
        elif _has_lowering(call):
            island = self._island(call)
            if island is None:
                found = self._uncovered(call)
                return _with_help(found) if found else "decompose makes it atoms with exact rules"
            where = f"in code that torch.fx cannot follow ({island})"
            return f"{where}: decompose gives it its rule while it runs"
        found = self._uncovered(call) or reason
        return _with_help(found) if found else _UNKNOWN

    def _decomposed(self, call: Call, reason: str | None) -> str:
        # What was seen in the run that was followed says more than what a graph tells.
        found = reason or self._uncovered(call)
        island = self._island(call)
        if found and island is not None:
            found = f"{found}; in code that torch.fx cannot follow ({island})"
        return _with_help(found) if found else _UNKNOWN

    def _uncovered(self, call: Call) -> str | None:
        found = [
            each.reason
            for each in (self.report.uncovered if self.report is not None else ())
            if each.operation == call.operation
            and (each.name == call.name or each.source == call.source != "")
        ]
        return found[0] if found else None

    def _island(self, call: Call) -> str | None:
        islands = self.report.islands if self.report is not None else {}
        for name, reason in islands.items():
            if name == "" or f"{call.where}.".startswith(f"{name}."):
                return reason
        return None


def _has_lowering(call: Call) -> bool:
    operation = operation_of(call.function)
    return operation is not None and operation.lower is not None


def _with_help(reason: str) -> str:
    helps = next((each for start, each in _HELPS.items() if reason.startswith(start)), None)
    return f"{reason}; {helps}" if helps else reason


def _report(model: nn.Module) -> Report | None:
    try:
        return Report.of(decompose(model, strict=False))
    except PassError:
        raise
    except Exception:
        # The model runs, and what cannot be rewritten is none of the user's questions here.
        return None
