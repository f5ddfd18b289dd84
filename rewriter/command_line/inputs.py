"""Example inputs as a command names them: from a file, by shapes, or with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewriter.command_line.failures import CommandError
from rewriter.jobs.formats import open_table


def example_inputs(model: nn.Module, given: Any, path: Path | None, shapes: Sequence[str]) -> Any:
    """Return inputs to run a model on: those of a file, random ones by shape, or those that it came with.

    Args:
        model: whose dtype they get.
        given: what the model's factory or program came with, or None.
        path: a file of samples, see :func:`rewriter.jobs.formats.open_table`.
        shapes: of positional arguments, such as ``"8,50,16"``; numbers are normal, seed 0.

    Raises:
        CommandError: if there are none, or a shape cannot be read.

    Example:
        >>> example_inputs(nn.Tanh(), None, None, ["2,3"]).shape
        torch.Size([2, 3])

    """
    if path is not None:
        return _of_file(path, model)
    if shapes:
        generator = torch.Generator().manual_seed(0)
        sizes = [sizes_of(shape, "--shape") for shape in shapes]
        drawn = tuple(torch.randn(each, generator=generator).to(_floating(model)) for each in sizes)
        return drawn if len(drawn) > 1 else drawn[0]
    if given is None:
        raise CommandError(
            "no inputs to run the model on: --inputs FILE, --shape 8,50,16, or let the factory return "
            "(model, example inputs)"
        )
    return given


def _of_file(path: Path, model: nn.Module) -> Any:
    table = open_table(path)
    arrays = tensors(table.read(0, table.rows), model)
    names = list(arrays)
    if len(names) == 1:
        return arrays[names[0]]
    return dict(arrays) if path.suffix == ".npz" else tuple(arrays.values())


def tensors(arrays: Mapping[str, np.ndarray[Any, Any]], model: nn.Module) -> dict[str, Tensor]:
    """Return arrays as tensors of the dtypes that a model takes.

    Floats get the dtype of its parameters. So do integers that are all there is, unless it looks tokens up;
    other integers, lengths beside a series for instance, stay integers.

    Example:
        >>> tensors({"x": np.zeros(2, int)}, nn.Linear(2, 1))["x"].dtype
        torch.float32
        >>> tensors({"x": np.zeros(2, int)}, nn.Embedding(2, 1))["x"].dtype
        torch.int64

    """
    floating = _floating(model)
    looks_up = any(isinstance(each, nn.Embedding | nn.EmbeddingBag) for each in model.modules())
    numbers = not looks_up and all(each.dtype.kind in "iu" for each in arrays.values())
    return {
        name: torch.from_numpy(np.ascontiguousarray(each)).to(
            floating if numbers or each.dtype.kind == "f" else torch.int64
        )
        for name, each in arrays.items()
    }


def _floating(model: nn.Module) -> torch.dtype:
    dtypes = (each.dtype for each in model.parameters() if each.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


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
