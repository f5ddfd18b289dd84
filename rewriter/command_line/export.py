"""``rewriter export`` and ``export-explainer``: a model, or its explanation, as ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rewriter.command_line.failures import told
from rewriter.command_line.inputs import example_inputs
from rewriter.command_line.models import load_model
from rewriter.command_line.options import (
    Background,
    Debug,
    Inputs,
    Json,
    Model,
    Reshape,
    Rows,
    Shapes,
    Trust,
)
from rewriter.command_line.references import references_of


def export(
    model: Model,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The .onnx file to write.")],
    inputs: Inputs = None,
    shape: Shapes = None,
    loops: Annotated[
        bool, typer.Option("--loops", help="Any length: a Scan for each recurrent layer.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operator set; by default the lowest.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference to torch, relative.")] = 1e-6,
    json_: Json = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    r"""Write a model as ONNX without recurrent operators, checked against torch in onnxruntime.

    \b
    rewriter export shop.models:forecaster forecaster.onnx --shape 8,50,16
    rewriter export model.pt2 model.onnx --loops
    """
    from rewriter.onnx.export_onnx import export_onnx

    with told(debug=debug):
        named = load_model(model, trusted=trust)
        examples = example_inputs(named.model, named.example_inputs, inputs, shape or [])
        options: dict[str, Any] = {"loops": loops, "opset": opset, "tolerance": tolerance}
        report = export_onnx(named.model, examples, path, **options)
        typer.echo(json.dumps(report.to_dict(), indent=2) if json_ else str(report))


def export_explainer(
    model: Model,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The .onnx file to write.")],
    background: Background,
    rows: Rows = 50,
    reshape: Reshape = None,
    references_as_input: Annotated[
        bool, typer.Option("--references-as-input", help="The file takes references beside the samples.")
    ] = False,
    time_axis: Annotated[
        int | None, typer.Option(help="An axis of any length, with --references-as-input.")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Version of the ONNX operator set; by default the lowest.")
    ] = None,
    json_: Json = False,
    trust: Trust = False,
    debug: Debug = False,
) -> None:
    r"""Write prediction, SHAP values and base value as one ONNX file; torch is not needed to run it.

    \b
    rewriter export-explainer shop.models:forecaster why.onnx --background train.npy
    """
    from rewriter.onnx_explainer.export_explainer_onnx import export_explainer_onnx

    with told(debug=debug):
        named = load_model(model, trusted=trust)
        references = list(references_of(named.model, background, rows, reshape, chosen=True).values())
        report = export_explainer_onnx(
            named.model,
            references if len(references) > 1 else references[0],
            path,
            references_as_input=references_as_input,
            time_axis=time_axis,
            opset=opset,
        )
        typer.echo(json.dumps(report.to_dict(), indent=2) if json_ else str(report))
