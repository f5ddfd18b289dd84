"""``rewriter check``: whether a rewritten model computes what the original computes, for CI."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from rewriter.command_line.failures import Exit, told
from rewriter.command_line.inputs import example_inputs
from rewriter.command_line.models import load_model
from rewriter.command_line.options import Debug, Inputs, Json, Model, Shapes, Trust
from rewriter.equivalence.check import TOLERANCES
from rewriter.equivalence.report import EquivalenceReport


class Level(StrEnum):
    """What a model is compared with."""

    DECOMPOSED = "decomposed"
    UNROLLED = "unrolled"


def check(
    model: Model,
    inputs: Inputs = None,
    shape: Shapes = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this model, named as the first, instead of the rewritten one."),
    ] = None,
    level: Annotated[Level, typer.Option(help="How far to rewrite it.")] = Level.DECOMPOSED,
    seeds: Annotated[int, typer.Option(min=1, help="Number of inputs to compare on.")] = 3,
    json_: Json = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write a summary for a pull request; it is appended to a file.")
    ] = None,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    r"""Compare a model with its rewritten form, outputs and gradients, in float32 and float64.

    Exit code 1 if they differ.

    \b
    rewriter check shop.models:forecaster --shape 8,50,16
    rewriter check shop.models:forecaster -i samples.npy --json > report.json
    rewriter check shop.models:old --against shop.models:new -s 8,50,16 --markdown "$GITHUB_STEP_SUMMARY"
    """
    from rewriter.compiler.decompose import decompose, unroll
    from rewriter.equivalence.check import check_equivalence

    with told(debug=debug):
        if markdown is not None:
            # A place that cannot be written to is better known before the check than after.
            markdown.open("a", encoding="utf-8").close()
        named = load_model(model, trusted=trust)
        examples = example_inputs(named.model, named.example_inputs, inputs, shape or [])
        original = named.model
        if against is not None:
            other = load_model(against, trusted=trust).model
        elif level is Level.UNROLLED:
            other = unroll(original, examples)
        else:
            other = decompose(original, examples)
        report = check_equivalence(
            original,
            other,
            examples,
            seeds=seeds,
            tolerances=TOLERANCES if named.any_dtype else _own(original),
        )
        typer.echo(report.to_json() if json_ else str(report))
        if markdown is not None:
            with markdown.open("a", encoding="utf-8") as file:
                file.write(summary(report, model))
        raise typer.Exit(Exit.HOLDS if report.equal else Exit.FAILS)


def _own(program: nn.Module) -> dict[torch.dtype, float]:
    """Return the tolerance in the one dtype in which a program runs."""
    floats = {each.dtype for each in (*program.parameters(), *program.buffers()) if each.is_floating_point()}
    return {dtype: allowed for dtype, allowed in TOLERANCES.items() if dtype in floats} or dict(TOLERANCES)


def summary(report: EquivalenceReport, model: str) -> str:
    """Return a report in Markdown, short enough for a pull request.

    Example:
        >>> report = EquivalenceReport("Net", "Net", 3, ("float64",), ())
        >>> print(summary(report, "shop:net").splitlines()[0])
        ### `shop:net`: equal

    """
    verdict = "equal" if report.equal else "**not equal**"
    lines = [
        f"### `{model}`: {verdict}",
        "",
        "| dtype | what | worst relative difference | allowed |",
        "|---|---|---|---|",
    ]
    for dtype in report.dtypes:
        for kind in dict.fromkeys(each.kind for each in report.comparisons):
            found = [each for each in report.comparisons if (each.dtype, each.kind) == (dtype, kind)]
            if found:
                worst = max(found, key=lambda each: (not each.equal, each.relative))
                lines.append(
                    f"| {dtype} | {kind} ({len(found)}) | {worst.relative:.1e} | {worst.allowed:.0e} |"
                )
    lines += [f"| {dtype} | not compared | {reason} | |" for dtype, reason in report.not_compared.items()]
    if report.first_layer:
        lines += ["", report.first_layer]
    lines += ["", f"{report.seeds} inputs: " + "; ".join(report.inputs[:2])] if report.inputs else []
    return "\n".join(lines) + "\n\n"
