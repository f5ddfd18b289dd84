"""torch's exporter, without what it says about itself, and with what its errors mean to a user."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import nn

from passes.errors import RewriteError
from passes.user_code.source import line_of
from rewriter.onnx.example import Example

# Sizes and indices have few numbers, weights many.
_SMALL = 64
# What torch says to those who develop torch.
_HINTS = re.compile(
    r"\s*(?:\(Size-like symbols|consider using data-dependent|Caused by:|For more information)"
)
# They talk about the attempt to export, whose outcome is reported anyway.
_TALKATIVE = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")


def exported(model: nn.Module, example: Example, free: Any, opset: int) -> Any:
    """Export a model.

    Args:
        model: in evaluation mode.
        example: inputs.
        free: which of their axes may have any size.
        opset: version of the ONNX operator set.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        RewriteError: if torch cannot export it.

    """
    with _quiet():
        program = _program(model, example, free)
        try:
            done: Any = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=opset, external_data=False
            )
            _fold_constants(done.model)
        except Exception as error:
            raise RewriteError(
                "export_onnx: torch.onnx knows no ONNX operators for a part of the model: "
                f"{_first_lines(error)}"
            ) from error
        return done.model_proto


def _program(model: nn.Module, example: Example, free: Any) -> torch.export.ExportedProgram:
    """Let torch.export run the model's code, or, if that fixes a size (``len(x)`` does), read it."""

    def export(*, strict: bool) -> torch.export.ExportedProgram:
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=free, strict=strict)

    try:
        return export(strict=False)
    except RewriteError:
        raise
    except Exception as error:
        try:
            torch.compiler.allow_in_graph(torch.onnx.ops.symbolic_multi_out)  # type: ignore[no-untyped-call]
            return export(strict=True)
        except Exception:
            raise RewriteError(_no_program(error)) from error


def _fold_constants(model: Any) -> None:
    """Compute what does not depend on the inputs, and turn sequences of tensors into Split.

    Weights stay: a transposed copy would have another name, and be one more if the weight is used twice.
    """
    from onnxscript import optimizer

    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=_SMALL,
        output_size_limit=_SMALL,
        should_fold=lambda node: False if node.op_type == "Transpose" else None,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says about itself: nothing that a user could act on."""
    # Loggers that are made meanwhile go by the level of those above them.
    names = {"torch", "onnxscript", "onnx_ir", *logging.root.manager.loggerDict}
    loggers = [logging.getLogger(name) for name in names if _TALKATIVE.match(name)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        # torch.export prints the graph at which it gives up.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            # torch.export and torch.onnx call functions that torch itself has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # A counter that the model keeps: it counts on the clone.
            warnings.filterwarnings("ignore", "While compiling, we found certain side effects", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_program(error: Exception) -> str:
    line = line_of(error)
    place = f" at {line}" if line else ""
    fixed = re.search(r"specialized it to be a constant \((\d+)\)", str(error))
    if fixed:
        return (
            f"export_onnx: the batch dimension is frozen: the model's code fixes it at {fixed[1]}{place}, "
            "as does int(...) or a size written as a number; take it from x.shape, or name another axis: "
            "batch_axes"
        )
    return (
        f"export_onnx: torch.export cannot follow the model{place}: {_first_lines(error)}; its forward "
        "must not decide by values of tensors, pack sequences, or return anything but tensors"
    )


def _first_lines(error: BaseException) -> str:
    """The innermost cause says what is wrong; the outer layers only say that something is."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = _HINTS.split(" ".join(lines[:3]))[0].rstrip(" .;")
    return f"{type(error).__name__}: {said}"
