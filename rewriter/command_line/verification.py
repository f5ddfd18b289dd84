"""``rewriter verify``: whether an exported file is what its certificate says."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rewriter.command_line.failures import Exit, told
from rewriter.command_line.options import Debug, Json


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="The .onnx file; its certificate is beside it.")
    ],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    r"""Check an exported file against the certificate beside it; neither torch nor the model is needed.

    Exit code 1 if something does not hold.

    \b
    rewriter verify forecaster.onnx
    """
    from rewriter.onnx.certificate.verify import verify as check

    with told(debug=debug):
        found = check(path)
        typer.echo(json.dumps(asdict(found), indent=2) if json_ else str(found))
        raise typer.Exit(Exit.HOLDS if found else Exit.FAILS)
