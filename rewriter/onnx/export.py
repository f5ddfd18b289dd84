"""From a torch model to an ONNX model whose recurrences are written out, in memory."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx, nn

from passes.errors import DeclinedError, RewriteError
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.replacements import recurrent_replacements
from passes.replacement import ApplyReplacements
from passes.user_code.clone import clone_structure, named_clones, private_clone
from rewriter.compiler.culprit import with_sources
from rewriter.compiler.decompose import lowered
from rewriter.engine.loops.roll import roll_loops
from rewriter.engine.sweeps.sweep import fused
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Axes, Example
from rewriter.onnx.graph import BATCH, drop_unused_nodes, rename_values
from rewriter.onnx.steps import DeferredRecurrence, Step, defer_steps
from rewriter.onnx.torch_export import exported
from rewriter.onnx.write import write_steps

# More ways to choose the axes of the time than are worth a run of the model each.
_MANY = 100
Times = tuple[tuple[int, ...], ...]


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


def exported_step(step: Step, opset: int) -> Any:
    """Export a step of a cell of the user's own, as the graph of an ``onnx.GraphProto``."""
    weight, _ = fused(step.hidden)
    widths = [weight.shape[0], *[weight.shape[1]] * step.states]
    # A size of 1 would be taken for a constant.
    tensors = tuple(weight.new_zeros(2, width) for width in widths)
    names = tuple(f"x{k}" for k in range(len(tensors)))
    example = Example(tensors, {}, names)
    free = _free_axes(example, (0,) * len(tensors), None)
    graph = exported(step, example, free, opset).graph
    drop_unused_nodes(graph)
    return graph


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
    for each in deferred.values():
        if isinstance(each, DeferredRecurrence) and is_users(each.cell):
            each.exported = exported_step(each.body, opset)
    proto = exported(clone, example, _free_axes(example, axes, times), opset)
    write_steps(proto.graph, deferred, loops=times is not None)
    rename_values(proto.graph, _parameter_names(clone, model))
    return proto


def evaluation_clone(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that shares the parameters of ``model``, not its buffers."""
    return private_clone(model).eval()


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
