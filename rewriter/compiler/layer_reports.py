"""What a report says of each layer that was rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from rewriter.keras.recurrent.layer import KerasBidirectional, KerasRecurrent


def keras_layers(model: nn.Module) -> list[Rewrite]:
    """Return what recurrent layers of Keras became, each by its name, those in a Bidirectional with it."""
    found: list[Rewrite] = []
    for name, module in model.named_modules():
        inside = any(f"{name}.".startswith(f"{each.name}." if each.name else "") for each in found)
        if isinstance(module, KerasRecurrent | KerasBidirectional) and not inside:
            found.append(Rewrite(name, module.kind, module))
    return found


def layer_reports(
    rolled: nn.Module,
    users: Replaced,
    recurrent: Iterable[Rewrite],
    of_keras: Sequence[Rewrite],
    traced: Traced,
    *,
    split: bool,
) -> tuple[LayerReport, ...]:
    """Report the layers that users replace, then the recurrent ones, with what they have become.

    Of a Keras model, which is replaced as a whole, each recurrent layer is reported in its place.
    """
    reports = []
    for rewrite in users.rewrites:
        prefix = f"{rewrite.name}." if rewrite.name else ""
        inner = [each for each in of_keras if f"{each.name}.".startswith(prefix)]
        copied = not users.shares(rewrite)
        reports += [_first_report(rolled, each, traced, copied=copied) for each in inner or [rewrite]]
    known = {each.name for each in reports}
    others = [each for each in of_keras if each.name not in known]
    reports += [_first_report(rolled, each, traced, copied=False) for each in others]
    return (*reports, *(_first_report(rolled, each, traced, copied=split) for each in recurrent))


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
