"""From a torch model to an ONNX model whose recurrences are written out, in memory."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import nn

from passes.errors import DeclinedError, RewriteError
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.replacements import recurrent_replacements
from passes.replacement import ApplyReplacements
from passes.user_code.clone import named_clones, private_clone
from passes.user_code.source import line_of
from rewriter.compiler.culprit import with_sources
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Axes, Example
from rewriter.onnx.graph import BATCH, rename_values
from rewriter.onnx.steps import defer_steps
from rewriter.onnx.write import write_steps

# Sizes and indices have few numbers, weights many.
_SMALL = 64
# What torch says to those who develop torch.
_HINTS = re.compile(
    r"\s*(?:\(Size-like symbols|consider using data-dependent|Caused by:|For more information)"
)
# More ways to choose the axes of the time than are worth a run of the model each.
_MANY = 100
# They talk about the attempt to export, whose outcome is reported anyway.
_TALKATIVE = re.compile(r"(torch|onnxscript|onnx_ir)(\.|$)")

Times = tuple[tuple[int, ...], ...]


def rewritten_clone(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, whose recurrent layers are rewritten.

    Raises:
        DeclinedError: if a recurrent layer cannot be rewritten exactly.

    """
    clone, modules = named_clones(private_clone(model))
    recurrent = ApplyReplacements(recurrent_replacements(), modules)
    recurrent(clone)
    if recurrent.declines:
        raise DeclinedError(with_sources(model, recurrent.declines), "Mend them, then export.")
    return clone.eval()


def to_onnx(
    clone: nn.Module, model: nn.Module, example: Example, axes: Axes, times: Times | None, *, opset: int
) -> Any:
    """Export a model in evaluation mode; recurrent layers become plain operators or Scans.

    Args:
        clone: what :func:`rewritten_clone` returned; it is used up.
        model: the model that it was made of.
        example: inputs with at least 2 rows.
        axes: which axis of each input is the batch.
        times: which other axes of each input may have any size; None writes every step out, otherwise
            each recurrent layer becomes one Scan.
        opset: version of the ONNX operator set.

    Returns:
        An ``onnx.ModelProto`` with the parameters' names in ``model``.

    Raises:
        RewriteError: if torch cannot export the model.

    """
    deferred = defer_steps(clone)
    proto = _exported(clone, example, _free_axes(example, axes, times), opset)
    write_steps(proto.graph, deferred, loops=times is not None)
    rename_values(proto.graph, _parameter_names(clone, model))
    return proto


def evaluation_clone(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the parameters of ``model``, not its buffers."""
    return private_clone(model).eval()


def _exported(model: nn.Module, example: Example, free: Any, opset: int) -> Any:
    with _quiet():
        program = _program(model, example, free)
        try:
            exported: Any = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=opset, external_data=False
            )
            _fold_constants(exported.model)
        except Exception as error:
            raise RewriteError(
                "export_onnx: torch.onnx knows no ONNX operators for a part of the model: "
                f"{_first_lines(error)}"
            ) from error
        return exported.model_proto


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


def _free_axes(example: Example, axes: Axes, times: Times | None) -> Any:
    """Tell torch.export which axes may have any size."""
    free = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    batch = torch.export.Dim(BATCH)
    for tensor, axis, others in zip(example.tensors, axes, times or [()] * len(axes), strict=True):
        dims: dict[int, Any] = dict.fromkeys(others, torch.export.Dim.AUTO)
        if axis is not None:
            dims[axis] = batch
        if dims:
            free[tensor] = dims
    return free


def time_axes(clone: nn.Module, model: nn.Module, example: Example, axes: Axes) -> Times:
    """Find the axes of each input that are as long as a recurrence, and that the model takes longer.

    Args:
        clone: what :func:`rewritten_clone` returned.
        model: what it was made of.
        example: the inputs.
        axes: the batch's axis of each input.

    """
    lengths = _lengths(evaluation_clone(clone), example)
    tensors = example.tensors
    found = [
        (k, axis)
        for k, tensor in enumerate(tensors)
        for axis, size in enumerate(tensor.shape)
        if size in lengths and axis != axes[k]
    ]
    # Inputs may have to be of one length: as many together as the model takes.
    choices = (each for count in range(len(found), 0, -1) for each in itertools.combinations(found, count))
    for chosen in itertools.islice(choices, _MANY):
        times = tuple(tuple(axis for place, axis in chosen if place == k) for k in range(len(tensors)))
        longer = example.resized(
            [
                {axis: tensor.shape[axis] + 1 for axis in each}
                for tensor, each in zip(tensors, times, strict=True)
            ]
        )
        try:
            run_torch(model, longer)
        except Exception:  # whatever the user's code raises
            continue
        return times
    return ((),) * len(tensors)


def _lengths(model: nn.Module, example: Example) -> set[int]:
    """Run a model to see how long the sequences of its recurrences are."""
    lengths: set[int] = set()
    for module in model.modules():
        if isinstance(module, Recurrence):
            module.register_forward_pre_hook(lambda _, args: lengths.add(args[0].shape[0]))
    run_torch(model, example)
    return lengths


def _parameter_names(clone: nn.Module, model: nn.Module) -> dict[str, str]:
    """Map each parameter's name in ``clone`` to its name in ``model``, where they differ."""
    known = {id(value): name for name, value in model.named_parameters()}
    return {
        name: known[id(value)]
        for name, value in clone.named_parameters(remove_duplicate=False)
        if known.get(id(value), name) != name
    }


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
