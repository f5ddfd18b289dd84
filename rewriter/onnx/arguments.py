"""Arguments of an export, checked before any model runs, and the file that is written at last."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from passes.errors import RewriteError
from rewriter.extras import optional
from rewriter.onnx.certificate.contents import FORMAT, certificate_path
from rewriter.onnx.example import Axes, Example
from rewriter.onnx.portable.opset import FIRST

OPSETS = range(FIRST, 25)
# What a file in protobuf's format can hold.
_LARGEST = 2**31


def checked_path(path: object, caller: str = "export_onnx") -> Path:
    """Return the file that ``path`` leads to, through symbolic links; ``caller`` begins messages.

    Raises:
        RewriteError: unless it is a regular file in an existing folder, or could become one.

    """
    if not isinstance(path, str | os.PathLike):
        raise RewriteError(f"{caller}: expected path as a string or a path, got {path!r}")
    try:
        file = Path(path).resolve()
        in_folder, is_folder, other = (
            file.parent.is_dir(),
            file.is_dir(),
            file.exists() and not file.is_file(),
        )
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RewriteError(f"{caller}: expected the path of a file, got {path!r}: {error}") from error
    if not in_folder:
        raise RewriteError(
            f"{caller}: expected path in an existing folder, got {file}: make the folder first"
        )
    if not os.access(file.parent, os.W_OK):
        raise RewriteError(f"{caller}: expected path in a folder that can be written to, got {file}")
    if is_folder:
        raise RewriteError(f"{caller}: expected the path of a file, got the folder {file}")
    if other:
        raise RewriteError(f"{caller}: expected the path of a regular file, got the device or pipe {file}")
    return file


def check_arguments(model: nn.Module, opset: object, tolerance: object) -> None:
    """Check what is known without running the model.

    Raises:
        RewriteError: for an unknown opset, a tolerance that is none, or weights that cannot be compared or
            stored.

    """
    if opset is not None and (type(opset) is not int or opset not in OPSETS):
        raise RewriteError(
            f"opset: expected {OPSETS[0]} to {OPSETS[-1]}, or None for the lowest, got {opset!r}"
        )
    if isinstance(tolerance, bool) or not isinstance(tolerance, float | int) or not 0 < tolerance < math.inf:
        raise RewriteError(f"tolerance: expected a positive number, got {tolerance!r}")
    if any(each.dtype == torch.bfloat16 for each in (*model.parameters(), *model.buffers())):
        raise RewriteError(
            "export_onnx: the model holds bfloat16, which onnxruntime lacks on the CPU, so nothing could be "
            "compared; export model.float()"
        )
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    if size > _LARGEST:
        raise RewriteError(f"export_onnx: the weights take {size:,} bytes, an ONNX file holds {_LARGEST:,}")


def check_installed() -> None:
    """Raise MissingExtraError unless everything that an export needs is installed."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        optional(name, "export_onnx", "onnx")
    if not hasattr(torch.onnx, "ops"):
        raise RewriteError(f"export_onnx needs torch 2.8 or later, got {torch.__version__}")


def given_axes(example: Example, given: Mapping[str, int]) -> Axes:
    """Read the argument ``batch_axes``.

    Raises:
        RewriteError: for a name that no input has, or an axis that its input lacks.

    """
    if not isinstance(given, Mapping) or set(given) - set(example.names):
        raise RewriteError(
            f"batch_axes: expected an axis for some of {', '.join(example.names)}, got {given!r}"
        )
    axes = []
    for name, tensor in zip(example.names, example.tensors, strict=True):
        axis = given.get(name)
        if name in given and type(axis) is not int:
            raise RewriteError(f"batch_axes: expected the number of an axis for {name}, got {axis!r}")
        if axis is not None and not -tensor.dim() <= axis < tensor.dim():
            raise RewriteError(f"batch_axes: {name} has shape {tuple(tensor.shape)}, and no axis {axis}")
        axes.append(None if axis is None else axis % tensor.dim())
    return tuple(axes)


def check_certificate(file: Path) -> None:
    """Raise RewriteError if a certificate beside ``file`` would replace something else."""
    beside = certificate_path(file)
    try:
        ours = not beside.exists() or json.loads(beside.read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise RewriteError(
            f"export_onnx: {beside}, where the certificate goes, is something else, or has a name too long; "
            "move it, write to another path, or pass certificate=False"
        )


def write_files(files: Mapping[Path, bytes], caller: str = "export_onnx") -> None:
    """Write next to each file, then replace them, so that no half-written file is ever seen.

    Raises:
        RewriteError: if one cannot be written; then none is replaced.

    """
    drafts = {file: file.with_name(f".{uuid.uuid4().hex}") for file in files}
    try:
        for file, draft in drafts.items():
            draft.write_bytes(files[file])
        for file, draft in drafts.items():
            os.replace(draft, file)
    except OSError as error:
        raise RewriteError(f"{caller}: cannot write {file}: {error}") from None
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
