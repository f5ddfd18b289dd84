"""From a torch model to an ONNX model whose recurrences are written out, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from passes.errors import DeclinedError, RewriteError
from passes.lowering.users_replacements import replace_users
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.replacements import recurrent_replacements
from passes.replacement import ApplyReplacements
from passes.user_code.clone import clone_structure, named_clones, private_clone
from passes.user_code.source import where_failed
from rewriter.compiler.culprit import with_sources
from rewriter.compiler.decompose import lowered
from rewriter.engine.loops.roll import roll_loops
from rewriter.keras.replacements import keras_builds
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Example
from rewriter.onnx.graph import rename_values, separate_outputs, tidy
from rewriter.onnx.packed import take_padded
from rewriter.onnx.portable.constants import state_constants
from rewriter.onnx.portable.opset import TORCHS
from rewriter.onnx.portable.project_first import project_first
from rewriter.onnx.recurrences.deferred import DeferredRecurrence, Step, defer_steps
from rewriter.onnx.recurrences.write import widths_of, write_steps
from rewriter.onnx.sizes.assumptions import Assumptions, assumptions_of, fixed_axes
from rewriter.onnx.sizes.axes import FreeAxes, FreeAxis, at_sizes, check_free, sizes_of
from rewriter.onnx.sizes.parting import parting_line
from rewriter.onnx.torch_export import exported, program_of, quiet


def rewritten_clone(model: nn.Module, *, rolled: bool = False) -> nn.Module:
    """Return a copy of a model in evaluation mode, whose recurrent layers are rewritten.

    Args:
        model: any.
        rolled: make recurrences of the loops over cells of the user's own, where they are recognised.

    Raises:
        DeclinedError: if a recurrent layer cannot be rewritten exactly.

    """
    if rolled:
        found = _rolled_clone(model)
        if found is not None:
            return found
    clone, modules = named_clones(private_clone(model))
    builds, left = keras_builds(modules)
    modules = replace_users(builds, left, clone).modules
    recurrent = ApplyReplacements(recurrent_replacements(), modules)
    recurrent(clone)
    if recurrent.declines:
        raise DeclinedError(with_sources(model, recurrent.declines), "Mend them, then export.")
    return clone.eval()


def _rolled_clone(model: nn.Module) -> nn.Module | None:
    """Return a copy whose loops are recurrences, None for a model in which none is recognised."""
    try:
        rewritten = clone_structure(lowered(evaluation_clone(model))).eval()
    except RewriteError:
        # What cannot be rewritten is told by those who go on without this.
        return None
    return rewritten if isinstance(rewritten, fx.GraphModule) and roll_loops(rewritten) else None


def is_users(cell: nn.Module) -> bool:
    """Whether a cell is the graph of a step in the user's own code."""
    return isinstance(cell, fx.GraphModule)


def has_users_loops(clone: nn.Module) -> bool:
    """Whether loops of the user's own became recurrences, whose length is what the code says."""
    return any(isinstance(each, Recurrence) and is_users(each.cell) for each in clone.modules())


def exported_step(step: Step, widths: Sequence[int], opset: int) -> Any:
    """Export a step of a cell of the user's own, as the graph of an ``onnx.GraphProto``.

    Args:
        step: one step.
        widths: the number of features of what comes in, and of each state.
        opset: version of the ONNX operator set.

    """
    weight = next(step.parameters())
    # A size of 1 would be taken for a constant.
    tensors = tuple(weight.new_zeros(2, width) for width in widths)
    names = tuple(f"x{k}" for k in range(len(tensors)))
    example = Example(tensors, {}, names)
    free = tuple({0: FreeAxis("batch")} for _ in tensors)
    step_proto = exported(step, program_of(step, example, free), opset)
    with quiet():
        return tidy(step_proto).graph


def to_onnx(
    clone: nn.Module, model: nn.Module, example: Example, free: FreeAxes, *, opset: int | None, loops: bool
) -> tuple[Any, Assumptions]:
    """Export a model in evaluation mode; recurrent layers become plain operators or Scans.

    Args:
        clone: what :func:`rewritten_clone` returned; it is used up.
        model: the model that it was made of.
        example: inputs with at least 2 elements along each free axis.
        free: the axes of each input that may have any size.
        opset: version of the ONNX operator set; 18 where it is lower, or None.
        loops: make one Scan of each recurrent layer, in place of its steps.

    Returns:
        An ``onnx.ModelProto`` with the parameters' names in ``model``, and what was assumed of the sizes.

    Raises:
        RewriteError: if torch cannot export the model.

    """
    opset = max(opset or 0, TORCHS)
    deferred = defer_steps(clone)
    take_padded(clone)
    program = program_of(clone, example, free)
    assumptions = assumptions_of(program)
    for k, place in fixed_axes(assumptions, free):
        size, axis = assumptions.shapes[k][place], free[k][place]
        line = assumptions.fixed_at(size)
        check_free(
            size,
            axis,
            example.names[k],
            place,
            f"at {line}" if line else _why_fixed(model, example, free, axis),
        )
    proto = exported(clone, program, opset)
    # Before weights are moved or stored otherwise: one may be an output.
    separate_outputs(proto.graph)
    rename_values(proto.graph, _parameter_names(clone, model))
    for key, widths in widths_of(proto.graph).items():
        each = deferred[key]
        if isinstance(each, DeferredRecurrence) and not _is_written(each.cell):
            each.exported = exported_step(each.body, widths, opset)
    write_steps(proto.graph, deferred, loops=loops)
    project_first(proto.graph)
    state_constants(proto.graph)
    return proto, assumptions


def _is_written(cell: nn.Module) -> bool:
    """Whether the writer of steps knows a cell: one that is made of our atoms and Linears alone."""
    parts = [cell, *cell.children()]
    return not is_users(cell) and all(
        type(each) is nn.Linear or type(each).__module__.startswith(("passes.", "rewriter.keras.recurrent."))
        for each in parts
    )


def evaluation_clone(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the parameters of ``model``, not its buffers."""
    return private_clone(model).eval()


def _why_fixed(model: nn.Module, example: Example, free: FreeAxes, axis: FreeAxis) -> str:
    """Say what becomes of a model when an axis has another size than in the example."""
    own = sizes_of(example, free)
    other = at_sizes(example, free, {**own, axis.name: own[axis.name] + 1})
    model = evaluation_clone(model)
    try:
        run_torch(model, other)
    except Exception as error:  # whatever the user's code raises
        return f"({type(error).__name__}: {error}, {where_failed(error)})"
    line = parting_line(model, example, other)
    return f"at {line}" if line else ""


def _parameter_names(clone: nn.Module, model: nn.Module) -> dict[str, str]:
    """Map each parameter's name in ``clone`` to its name in ``model``, where they differ."""
    known = {id(value): name for name, value in model.named_parameters()}
    return {
        name: known[id(value)]
        for name, value in clone.named_parameters(remove_duplicate=False)
        if known.get(id(value), name) != name
    }
