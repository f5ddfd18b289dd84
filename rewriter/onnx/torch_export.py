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
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.source import line_of
from rewriter.onnx.containers import tensors_of
from rewriter.onnx.example import Example
from rewriter.onnx.graph import rename_values
from rewriter.onnx.packed import PaddedWhilePacked
from rewriter.onnx.portable.attention import FourAxes
from rewriter.onnx.sizes.assumptions import assumptions_of, fixed_axes, kept_axes
from rewriter.onnx.sizes.axes import FreeAxes

# Sizes and indices have few numbers, weights many.
_SMALL = 64
# What torch says to those who develop torch.
_HINTS = re.compile(
    r"\s*(?:\(Size-like symbols|consider using data-dependent|Caused by:|For more information)"
)
# They talk about the attempt to export, whose outcome is reported anyway.
_TALKATIVE = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")

# What a model is called in one that takes tensors only.
_INSIDE = "model"


def exported(model: nn.Module, program: torch.export.ExportedProgram, opset: int) -> Any:
    """Export a program.

    Args:
        model: what the program was made of.
        program: what :func:`program_of` returned.
        opset: version of the ONNX operator set.

    Returns:
        An ``onnx.ModelProto``, in which parameters and buffers have their names in ``model``.

    Raises:
        RewriteError: if torch has no operators for it.

    """
    with _following():
        for node in kept_axes(program.graph):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        try:
            done: Any = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=opset, external_data=False
            )
            _fold_constants(done.model)
        except Exception as error:
            raise RewriteError(
                "export_onnx: torch.onnx knows no ONNX operators for a part of the model: "
                f"{_first_lines(error)}"
            ) from None  # the report of torch's exporter is as long as the model
        proto = done.model_proto
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    rename_values(proto.graph, {f"{_INSIDE}.{name}": name for name, _ in named})
    return proto


def program_of(model: nn.Module, example: Example, free: FreeAxes) -> torch.export.ExportedProgram:
    """Let torch.export run the model's code, or, if that fixes a size (``len(x)`` does), read it.

    Args:
        model: in evaluation mode.
        example: inputs.
        free: which of their axes may have any size; a program may come back in which one is fixed.

    Raises:
        RewriteError: if torch cannot follow the model.

    """
    with _following():
        return _program(model, example, free)


def _program(model: nn.Module, example: Example, free: FreeAxes) -> torch.export.ExportedProgram:
    failure: Exception | None = None
    program = None
    # A tensor that is given twice would be one input.
    example = example.with_tensors([tensor.clone() for tensor in example.tensors])
    try:
        with PaddedWhilePacked(), FourAxes():
            program = torch.export.export(
                _OnTensors(model, example), tuple(example.tensors), dynamic_shapes=(tuple(_dynamic(free)),)
            )
        if not fixed_axes(assumptions_of(program), free):
            return program
    except RewriteError:
        raise
    except Exception as error:
        failure = error
    try:
        torch.compiler.allow_in_graph(torch.onnx.ops.symbolic_multi_out)  # type: ignore[no-untyped-call]
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for tensor, dims in zip(example.tensors, _dynamic(free), strict=True):
            if dims:
                shapes[tensor] = dims
        return torch.export.export(model, example.args, example.kwargs, dynamic_shapes=shapes, strict=True)  # type: ignore[arg-type]
    except Exception:
        if program is not None:
            return program
        assert failure is not None
        raise RewriteError(_no_program(failure)) from None


def _dynamic(free: FreeAxes) -> list[dict[int, Any]]:
    """Tell torch.export which axes may have any size; what it then finds out of them is read afterwards."""
    return [dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in free]


class _OnTensors(nn.Module):
    """A model that takes its tensors one by one and gives a tuple: whatever containers it has itself."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.add_module(_INSIDE, model)
        self.example = example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        example = self.example.with_tensors(tensors)
        return tuple(tensors_of(self.get_submodule(_INSIDE)(*example.args, **example.kwargs)))


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
def quiet() -> Iterator[None]:
    """Silence what torch's exporter says about itself: nothing that a user could act on.

    Example:
        >>> with quiet():
        ...     logging.getLogger("onnxscript").warning("heard by nobody")

    """
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
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _following() -> Iterator[None]:
    """Silence, too, what torch says while it follows a model's code."""
    with quiet():
        # A counter that the model keeps: it counts on the clone.
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects", UserWarning)
        # What torch says of its own code while it follows it; running the model says it, too.
        warnings.filterwarnings("ignore", category=UserWarning, module=_TALKATIVE.pattern)
        yield


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
