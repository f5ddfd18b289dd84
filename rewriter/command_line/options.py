"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="package.module:factory, a .pt2 file of torch.export, or a .keras file."
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        "-i",
        help="Samples to run it on: .npy, .npz (an array for each input), .csv, .parquet, .arrow.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", "-s", help="Random inputs of this shape, such as 8,50,16; once for each argument."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Unpickle files, which runs the code in them: only files whose origin you know."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Background = Annotated[
    Path, typer.Option("--background", "-b", help="Reference samples: .npy, .npz, .csv, .parquet or .arrow.")
]
Rows = Annotated[int, typer.Option(min=1, help="Rows of the background that are used.")]
Reshape = Annotated[str | None, typer.Option(help="Shape of a row, such as 50,16, where the file is flat.")]
