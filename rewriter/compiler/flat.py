"""The flat level: every step of every recurrence written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from passes.errors import RewriteError
from passes.graph.cleanup import Cleanup
from passes.graph.graph_module import Lowered
from passes.graph.layers import put_taps
from passes.graph.unshare import UnshareAtoms
from passes.pipeline import Pipeline
from passes.recurrent.lengths import record_calls
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.unroll import Call, ExpectSteps, Unroll
from rewriter.compiler.layer_reports import layer_report
from rewriter.compiler.report import Proven, Report


def unrolled(rolled: nn.Module, example_inputs: Any, length: int | None) -> nn.Module:
    """Write the steps out in a model that nobody else has.

    Args:
        rolled: what decompose made without example inputs.
        example_inputs: whose lengths are written out.
        length: or that of every recurrent layer.

    Example:
        >>> from rewriter import decompose
        >>> unrolled(decompose(nn.GRU(3, 2)), None, 2).report.layers[0].level
        'flat'

    """
    report = Report.of(rolled)
    owners = dict(rolled.named_parameters(remove_duplicate=False))
    if length is None:
        is_graph = isinstance(rolled, Lowered) and not report.islands
        calls = record_calls(rolled, example_inputs, all_rewritten=not report.declines, is_graph=is_graph)
    else:
        _check_length(rolled, length)
        recurrences = [module for module in rolled.modules() if isinstance(module, Recurrence)]
        calls = {id(module): [Call(length, masked=False)] for module in recurrences}
    flat = _without_recurrences(rolled, calls) if any(calls.values()) else rolled
    layers = tuple(layer_report(flat, layer) for layer in report.layers)
    moved = {id(parameter): name for name, parameter in flat.named_parameters()}
    names = {
        old: tuple(moved.get(id(owners.get(path)), path) for path in paths)
        for old, paths in report.parameter_names.items()
    }
    # What was compared before is the other level's.
    replace(report, layers=layers, parameter_names=names, proven=Proven()).attach(flat)
    return flat


def _without_recurrences(rolled: nn.Module, calls: dict[int, list[Call]]) -> nn.Module:
    if isinstance(rolled, fx.GraphModule):
        put_taps(rolled)
    return Pipeline(Unroll(calls), UnshareAtoms(), Cleanup())(rolled).model


def _check_length(model: nn.Module, length: int) -> None:
    for module in model.modules():
        if isinstance(module, ExpectSteps) and module.call.length != length:
            raise RewriteError(
                f"{module.name}: unrolled for sequences of {module.call.length} steps already, asked for "
                f"{length}; unroll the result of decompose(model) instead"
            )
