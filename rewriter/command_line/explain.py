"""``rewriter explain``: SHAP values of all rows of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rewriter.command_line.failures import CommandError, Exit, told
from rewriter.command_line.models import load_model
from rewriter.command_line.options import Debug, Json, Model, Reshape, Rows, Trust
from rewriter.command_line.references import references_of, shape_of_rows
from rewriter.html.report import checked_path
from rewriter.jobs.job import Job, Summary, run_job, run_parts
from rewriter.jobs.page import write_page
from rewriter.jobs.whole import ENDINGS, checked_out


class Accuracy(StrEnum):
    """How near to Shapley values, see :meth:`rewriter.DeepExplainer.shap_values`."""

    FAST = "fast"
    NEAR = "near"
    NEAREST = "nearest"


class Engine(StrEnum):
    """Where rows are explained."""

    LOCAL = "local"
    RAY = "ray"


class Cells(StrEnum):
    """By what rule steps of recurrences are explained, see :meth:`rewriter.DeepExplainer.shap_values`."""

    DEEPLIFT = "deeplift"
    SHAPLEY = "shapley"


def explain(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Samples: .npy, .npz, .csv, .parquet or .arrow.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder for a Parquet data set, or one .npz or .parquet.")
    ],
    background: Annotated[
        Path | None,
        typer.Option(
            "--background", "-b", help="Reference samples; the first rows of the data if not given."
        ),
    ] = None,
    rows: Rows = 50,
    reshape: Reshape = None,
    rows_per_part: Annotated[
        int, typer.Option(min=1, help="Rows of a part: what a killed run does again.")
    ] = 1024,
    accuracy: Annotated[
        Accuracy | None, typer.Option(help="Nearer to Shapley values, each at its price.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Blocks of inputs, switched one by one.")] = None,
    segments: Annotated[int | None, typer.Option(min=1, help="Pieces of the way to the sample.")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="Orders of the blocks for each reference.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the orders.")] = None,
    cells: Annotated[
        Cells | None, typer.Option(help="shapley: input and state of a step are two players.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="ray: on many processes or machines.")] = Engine.LOCAL,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of Ray; as many as there are processors if not given."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page about the first rows, too: one .html file.")
    ] = None,
    html_rows: Annotated[int, typer.Option(min=1, help="Rows of the data that the page shows.")] = 50,
    json_: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    r"""Write SHAP values, outputs and base values of every row of a file.

    A folder is written in parts: a run that ends early, in whatever way, goes on where it was when the same
    command is given again. Rows that cannot be explained are named, and have an error in the results;
    then the exit code is 1.

    \b
    rewriter explain shop.models:forecaster samples.npy --out values/ --background train.npy
    rewriter explain model.pt2 samples.csv --reshape 50,16 --out values.npz --html report.html
    rewriter explain shop.models:forecaster samples.parquet -o values/ -b train.npy --engine ray
    """
    with told(debug=debug):
        if html is not None:
            checked_path(html)
        checked_out(out, [each for each in (data, background, Path(model)) if each is not None])
        runner = _runner(engine, workers)
        named = load_model(model, trusted=trust)
        shape = shape_of_rows(reshape)
        references = references_of(
            named.model, background or data, rows, reshape, chosen=background is not None
        )
        whole = out.suffix in ENDINGS
        folder = out.with_name(f".{out.name}.parts") if whole else out
        asked = {
            "accuracy": accuracy,
            "blocks": blocks,
            "segments": segments,
            "draws": draws,
            "seed": seed,
            "cells": cells,
        }
        nearer: Any = {name: each for name, each in asked.items() if each is not None}
        job = Job(named.model, references, data, folder, shape, rows_per_part, nearer=nearer)
        with _progress(job.table.rows, quiet) as told_of:
            summary = run_job(job, on_rows=told_of, run=runner, into=out if whole else None)
        page = html and write_page(job, summary, html, html_rows)
        if page and not json_:
            typer.echo(str(page))
        typer.echo(_as_json(summary, out) if json_ else str(summary).replace(str(folder), str(out)))
        raise typer.Exit(Exit.FAILS if summary.failed else Exit.HOLDS)


def _runner(engine: Engine, workers: int | None) -> Any:
    if engine is Engine.LOCAL:
        if workers is not None:
            raise CommandError("--workers is for --engine ray; here rows are explained in this process")
        return run_parts
    from rewriter.jobs.on_ray import ray_data, run_on_ray

    ray_data()
    return partial(run_on_ray, workers=workers)


@contextmanager
def _progress(rows: int, quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        task = bar.add_task("rows", total=rows)

        yield lambda done: bar.update(task, completed=done)


def _as_json(summary: Summary, out: Path) -> str:
    failed = [{"row": row, "error": why} for row, why in summary.failed]
    return json.dumps(
        {"out": str(out), "rows": summary.rows, "failed": failed, "resumed": summary.resumed}, indent=2
    )
