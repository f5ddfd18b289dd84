"""Example inputs as a command names them: from a file, by shapes, or with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewriter.command_line.failures import CommandError
from rewriter.jobs.formats import open_table


def example_inputs(given: Any, path: Path | None, shapes: Sequence[str]) -> Any:
    """Return inputs to run a model on: those of a file, random ones by shape, or those that it came with.

    Args:
        given: what the model's factory or program came with, or None.
        path: a file of samples, see :func:`rewriter.jobs.formats.open_table`.
        shapes: of positional arguments, such as ``"8,50,16"``; numbers are normal, seed 0.

    Raises:
        CommandError: if there are none, or a shape cannot be read.

    Example:
        >>> example_inputs(None, None, ["2,3"]).shape
        torch.Size([2, 3])

    """
    if path is not None:
        return _of_file(path)
    if shapes:
        generator = torch.Generator().manual_seed(0)
        drawn = tuple(torch.randn(sizes_of(shape, "--shape"), generator=generator) for shape in shapes)
        return drawn if len(drawn) > 1 else drawn[0]
    if given is None:
        raise CommandError(
            "no inputs to run the model on: --inputs FILE, --shape 8,50,16, or let the factory return "
            "(model, example inputs)"
        )
    return given


def _of_file(path: Path) -> Any:
    table = open_table(path)
    arrays = tensors(table.read(0, table.rows))
    names = list(arrays)
    if len(names) == 1:
        return arrays[names[0]]
    return dict(arrays) if path.suffix == ".npz" else tuple(arrays.values())


def tensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Return arrays as tensors of the dtypes that models take: floats in torch's default dtype, else int64.

    Example:
        >>> tensors({"x": np.zeros(2)})["x"].dtype
        torch.float32

    """
    default = torch.get_default_dtype()
    return {
        name: torch.from_numpy(np.ascontiguousarray(each)).to(
            default if each.dtype.kind == "f" else torch.int64
        )
        for name, each in arrays.items()
    }


def sizes_of(text: str, option: str) -> tuple[int, ...]:
    """Return the sizes that an option gives.

    Raises:
        CommandError: for what is no list of sizes.

    Example:
        >>> sizes_of("8,50,16", "--shape")
        (8, 50, 16)

    """
    try:
        sizes = tuple(int(each) for each in text.replace("x", ",").split(",") if each.strip())
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise CommandError(f"{option} {text}: expected sizes such as 8,50,16")
    return sizes
