"""What a report says of each layer that was rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from torch import fx, nn

from passes.frontends.tracing import Traced
from passes.leaves import Atom
from passes.lowering.calls_in_graphs import LoweredCall
from passes.lowering.users_replacements import Replaced, names_now
from passes.recurrent.recurrence import Recurrence
from passes.replacement import Rewrite
from passes.stand_in import StandIn
from rewriter.compiler.report import LayerReport, OperationReport


def layer_reports(
    rolled: nn.Module, users: Replaced, recurrent: Iterable[Rewrite], traced: Traced, *, split: bool
) -> tuple[LayerReport, ...]:
    """Report the layers that users replace, then the recurrent ones, with what they have become."""
    replaced = [_first_report(rolled, each, traced, copied=not users.shares(each)) for each in users.rewrites]
    return (*replaced, *(_first_report(rolled, each, traced, copied=split) for each in recurrent))


def _first_report(rolled: nn.Module, rewrite: Rewrite, traced: Traced, *, copied: bool) -> LayerReport:
    inside = any(
        island == "" or f"{rewrite.name}.".startswith(f"{island}.") for island in traced.islands
    ) or not isinstance(rolled, fx.GraphModule)
    layer = LayerReport(
        rewrite.name,
        rewrite.kind,
        "islands" if inside else "fx",
        "rolled",
        sum(isinstance(module, Atom) for module in rewrite.module.modules()),
        "copied" if copied else "shared",
    )
    return layer_report(rolled, layer)


def _names(users: Replaced, rewrite: Rewrite) -> dict[str, tuple[str, ...]]:
    # What lies in a replacement has no name in the user's model.
    return names_now(rewrite, users.tensors.get(rewrite.name, {}))


def module_operation(rewrite: Rewrite) -> OperationReport:
    """Report a module that became atoms."""
    atoms = sum(isinstance(module, Atom) for module in rewrite.module.modules())
    return OperationReport(rewrite.name, rewrite.kind, atoms)


def call_operation(call: LoweredCall) -> OperationReport:
    """Report a call that became atoms."""
    return OperationReport(call.name, call.operation, call.atoms)


def layer_report(model: nn.Module, layer: LayerReport) -> LayerReport:
    """Count again what lies below the layer's name now."""
    prefix = f"{layer.name}." if layer.name else ""
    below = [module for name, module in model.named_modules() if name.startswith(prefix)]
    atoms = sum(isinstance(module, Atom) for module in below)
    if not atoms:
        return layer
    shared = any(isinstance(module, Recurrence) for module in below) or (
        layer.front_end == "islands" and "Cell" in layer.kind
    )
    return replace(layer, atoms=atoms, level="rolled" if shared else "flat")


def parameter_names(users: Replaced, recurrent: Iterable[Rewrite]) -> dict[str, tuple[str, ...]]:
    """Say where each parameter of the layers that were replaced is now."""
    names: dict[str, tuple[str, ...]] = {}
    for rewrite in users.rewrites:
        names |= _names(users, rewrite)
    for rewrite in recurrent:
        prefix = f"{rewrite.name}." if rewrite.name else ""
        for name, paths in cast("StandIn", rewrite.module)._paths.items():
            names[prefix + name] = tuple(prefix + path for path in paths)
    return names
