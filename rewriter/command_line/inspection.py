"""``rewriter inspect``: what is in a model, what would be rewritten, what breaks additivity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from torch import nn

from rewriter.command_line.failures import CommandError, Exit, told
from rewriter.command_line.inputs import example_inputs
from rewriter.command_line.models import Named, load_model
from rewriter.command_line.options import Debug, Inputs, Json, Model, Shapes, Trust


def inspect(
    model: Model,
    inputs: Inputs = None,
    shape: Shapes = None,
    json_: Json = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    r"""Show what is in a model, what would be rewritten, and what breaks additivity, by source line.

    Exit code 1 if an explanation would not be exact.

    \b
    rewriter inspect shop.models:forecaster --shape 8,50,16
    rewriter inspect model.pt2 --inputs samples.npy
    """
    with told(debug=debug):
        named = load_model(model, trusted=trust)
        examples = _examples(named, inputs, shape or [])
        found = _looked_at(named.model, examples)
        typer.echo(json.dumps(found, indent=2, default=str) if json_ else _shown(found))
        raise typer.Exit(Exit.HOLDS if found["exact"] else Exit.FAILS)


def _examples(named: Named, path: Path | None, shapes: list[str]) -> Any:
    try:
        return example_inputs(named.model, named.example_inputs, path, shapes)
    except CommandError:
        if path is not None or shapes:
            raise
        return None


def _looked_at(model: nn.Module, examples: Any) -> dict[str, Any]:
    from rewriter.compiler.decompose import decompose
    from rewriter.compiler.report import Report

    rewritten = decompose(model) if examples is None else decompose(model, examples)
    report = Report.of(rewritten)
    kinds: dict[str, int] = {}
    for each in model.modules():
        if not list(each.children()):
            kinds[type(each).__name__] = kinds.get(type(each).__name__, 0) + 1
    return {
        "model": type(model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "layers": kinds,
        "exact": bool(report),
        "report": report.to_dict(),
        "text": str(report),
        "looked_at_with_inputs": examples is not None,
    }


def _shown(found: dict[str, Any]) -> str:
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(found["layers"].items()))
    lines = [f"{found['model']}: {found['parameters']:,} parameters; {layers}", "", found["text"], ""]
    if found["exact"]:
        lines.append("Every operation has an exact rule: explanations add up to rounding.")
    elif found["report"]["uncovered"] or found["report"]["declines"]:
        lines.append(
            "Not exact: what is not covered above has no rule; explanations that need one raise an error."
        )
    else:
        lines.append("Code stays as it is and was not run: give --inputs or --shape to know what is in it.")
    return "\n".join(lines)
