"""The axes that may have any size: the batch, those that users name, and those a recurrence runs over."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.recurrent.recurrence import Recurrence
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Axes, Example
from rewriter.onnx.sizes.assumptions import Assumptions

BATCH = "batch"
TIME = "time"
# More ways to choose the axes of the time than are worth a run of the model each.
_MANY = 100


@dataclass(frozen=True)
class FreeAxis:
    """An axis that may have any size, or any within bounds.

    Args:
        name: what the file calls it; axes of one name have one size.
        least: smallest size.
        most: largest size, None for any.
        named: the user has named it; otherwise it is called after what it turns out to be equal to.

    """

    name: str
    least: int = 1
    most: int | None = None
    named: bool = True


#: For each input, its axes that may have any size.
FreeAxes = tuple[dict[int, FreeAxis], ...]


def free_axes(example: Example, batch: Axes, given: Any) -> FreeAxes:
    """Join the batch and what the user names.

    Args:
        example: the inputs.
        batch: the batch's axis of each.
        given: the argument ``dynamic_axes``: by input, a name for each axis, or a ``torch.export.Dim``.

    Raises:
        RewriteError: for an input or an axis that is not there, or what is no name.

    Example:
        >>> from rewriter.onnx.example import read_example
        >>> example = read_example(nn.LSTM(3, 2), torch.ones(4, 5, 3))
        >>> [*free_axes(example, (1,), {"input": {0: "steps"}})[0].items()]
        [(1, FreeAxis(name='batch', ...)), (0, FreeAxis(name='steps', ...))]

    """
    free: FreeAxes = tuple({} if axis is None else {axis: FreeAxis(BATCH)} for axis in batch)
    if not isinstance(given, Mapping) or set(given) - set(example.names):
        raise RewriteError(
            f"dynamic_axes: expected, for some of {', '.join(example.names)}, the names of its axes, as in "
            f"{{{example.names[0]!r}: {{1: 'time'}}}}; got {given!r}"
        )
    renamed: dict[str, FreeAxis] = {}
    bounds: dict[str, FreeAxis] = {}
    for name, axes in given.items():
        k = example.names.index(name)
        shape = tuple(example.tensors[k].shape)
        if not isinstance(axes, Mapping):
            raise RewriteError(f"dynamic_axes: expected a name for each axis of {name}, as in {{1: 'time'}}")
        for axis, wanted in axes.items():
            if type(axis) is not int or not -len(shape) <= axis < len(shape):
                raise RewriteError(f"dynamic_axes: {name} has shape {shape}, and no axis {axis!r}")
            place = axis % len(shape)
            found = _axis(name, wanted)
            if bounds.setdefault(found.name, found) != found:
                raise RewriteError(f"dynamic_axes: {found.name} has different bounds in different places")
            if place in free[k]:
                renamed[free[k][place].name] = found
            free[k][place] = found
    if renamed.get(BATCH):
        for each in free:
            each.update((axis, renamed[BATCH]) for axis, old in each.items() if old.name == BATCH)
    return free


def _axis(name: str, wanted: Any) -> FreeAxis:
    """Read what a user calls an axis."""
    if isinstance(wanted, str) and wanted:
        return FreeAxis(wanted)
    if isinstance(wanted, torch.export.Dim) and type(wanted) is torch.export.Dim:
        most = wanted.max if type(wanted.max) is int else None
        if most is not None and most < 2:
            raise RewriteError(f"dynamic_axes: {wanted.__name__} has one size only; leave it out")
        return FreeAxis(wanted.__name__, max(1, int(wanted.min)), most)
    raise RewriteError(
        f"dynamic_axes: expected a name, or torch.export.Dim('time', max=20) for one with bounds, for an "
        f"axis of {name}, got {wanted!r}"
    )


def settled(free: FreeAxes, example: Example, assumptions: Assumptions) -> FreeAxes:
    """Name the axes after what torch.export found them to be; those that it fixed are not free.

    Raises:
        RewriteError: if a named axis is fixed, or two names stand for one size.

    """
    names: dict[Any, FreeAxis] = {}
    for k, (shape, axes) in enumerate(zip(assumptions.shapes, free, strict=True)):
        for place, axis in axes.items():
            symbol = shape[place]
            if axis.named:
                check_free(symbol, axis, example.names[k], place, "")
                if names.setdefault(symbol, axis).name != axis.name:
                    raise RewriteError(
                        f"dynamic_axes: the model takes {names[symbol].name} and {axis.name} only of one "
                        "size; give them one name, or one of them no name"
                    )
    taken = {axis.name for axis in names.values()}
    fresh = (f"{TIME}_{k}" if k else TIME for k in itertools.count())
    result: FreeAxes = tuple({} for _ in free)
    for k, (shape, axes) in enumerate(zip(assumptions.shapes, free, strict=True)):
        for place in axes:
            symbol = shape[place]
            if isinstance(symbol, int) or not symbol.is_Symbol:
                continue
            if symbol not in names:
                names[symbol] = FreeAxis(next(name for name in fresh if name not in taken), named=False)
            result[k][place] = names[symbol]
    return result


def check_free(symbol: Any, axis: FreeAxis, name: str, place: int, why: str) -> None:
    """Raise RewriteError if an axis that the user names has one size, or one that follows from others."""
    if not axis.named:
        return
    if isinstance(symbol, int):
        where = f" {why}" if why else ""
        what, mend = (
            ("the batch dimension", "pass batch_axes={} for a file of one batch size")
            if axis.name == BATCH
            else (
                f"axis {place} ({axis.name})",
                "name axes of other inputs that are as long alike, or leave it out of dynamic_axes",
            )
        )
        raise RewriteError(
            f"export_onnx: {what} of {name} is frozen: the model's code fixes it at {symbol}{where}, as do "
            f"int(...), a branch on a size, or a size written as a number; take it from x.shape, or "
            f"{mend}"
        )
    if not symbol.is_Symbol:
        raise RewriteError(
            f"dynamic_axes: the model takes axis {place} ({axis.name}) of {name} only of size {symbol}; "
            "leave it out of dynamic_axes"
        )


def sizes_of(example: Example, free: FreeAxes) -> dict[str, int]:
    """Return how large each free axis is in the example.

    Raises:
        RewriteError: if axes of one name have different sizes, or one out of its bounds.

    """
    sizes: dict[str, int] = {}
    for name, tensor, axes in zip(example.names, example.tensors, free, strict=True):
        for place, axis in axes.items():
            size = tensor.shape[place]
            if sizes.setdefault(axis.name, size) != size:
                argument = "batch_axes" if axis.name == BATCH else "dynamic_axes"
                raise RewriteError(
                    f"{argument}: expected one size for {axis.name} in all inputs, got {size} in {name} and "
                    f"{sizes[axis.name]} in another"
                )
            if size < axis.least or (axis.most is not None and size > axis.most):
                raise RewriteError(
                    f"dynamic_axes: {axis.name} goes from {axis.least} to {axis.most}, example_inputs have "
                    f"{size} in {name}"
                )
    return sizes


def at_sizes(example: Example, free: FreeAxes, sizes: Mapping[str, int]) -> Example:
    """Return the example with other sizes of its free axes."""
    return example.resized(
        [{place: sizes[axis.name] for place, axis in axes.items() if axis.name in sizes} for axes in free]
    )


def at_two(example: Example, free: FreeAxes) -> Example:
    """Make every free axis at least 2 long: torch.export takes a size of 1 for a constant."""
    sizes = {name: 2 for name, size in sizes_of(example, free).items() if size < 2}
    return at_sizes(example, free, sizes) if sizes else example


def with_times(free: FreeAxes, clone: nn.Module, model: nn.Module, example: Example) -> FreeAxes:
    """Add the axes that a recurrence runs over, at whatever stride, if the model takes them longer.

    Args:
        free: what is free already.
        clone: the model with its recurrent layers rewritten, in evaluation mode.
        model: what it was made of.
        example: the inputs.

    """
    before = _lengths(clone, example)
    places = [
        (k, axis)
        for k, tensor in enumerate(example.tensors)
        for axis in range(tensor.dim())
        if axis not in free[k]
    ]
    steps = {length for lengths in before for length in lengths}
    found = []
    for k, axis in places:
        if example.tensors[k].shape[axis] in steps or _changes(clone, example, [(k, axis)], before):
            found.append((k, axis))
    # Inputs may have to be of one length: as many together as the model takes.
    choices = (each for count in range(len(found), 0, -1) for each in itertools.combinations(found, count))
    for chosen in itertools.islice(choices, _MANY):
        if not _runs(model, example, chosen, free):
            continue
        times = tuple(
            {axis: FreeAxis(f"{TIME}:{k}:{axis}", named=False) for place, axis in chosen if place == k}
            for k in range(len(free))
        )
        return tuple({**old, **new} for old, new in zip(free, times, strict=True))
    return free


def counts_steps(tensor: Tensor, steps: int) -> bool:
    """Whether a tensor of integers has one for each row, from 1 to a number of steps, as lengths do."""
    return (
        tensor.dtype in (torch.int32, torch.int64)
        and tensor.dim() == 1
        and tensor.numel() > 0
        and int(tensor.min()) >= 1
        and int(tensor.max()) <= steps
    )


def _longer(
    example: Example, chosen: Sequence[tuple[int, int]], times: int, *, full: bool = False
) -> Example:
    """Return the example with longer axes; if ``full``, with what may be lengths as long as the axis."""
    sizes: list[dict[int, int]] = [{} for _ in example.tensors]
    for k, axis in chosen:
        sizes[k][axis] = times * example.tensors[k].shape[axis] + 1
    longer = example.resized(sizes)
    if not full:
        return longer
    (k, axis) = chosen[0]
    steps, own = sizes[k][axis], example.tensors[k].shape[axis]
    return longer.with_tensors(
        [torch.full_like(each, steps) if counts_steps(each, own) else each for each in longer.tensors]
    )


def _runs(model: nn.Module, example: Example, chosen: Sequence[tuple[int, int]], free: FreeAxes) -> bool:
    """Whether a model takes some axes longer, alone or together with those that the user names."""
    named = [(k, place) for k, axes in enumerate(free) for place, axis in axes.items() if axis.name != BATCH]
    for others, times in itertools.product(([], named), (2, 1)):
        try:
            run_torch(model, _longer(example, [*chosen, *others], times))
        except Exception:  # whatever the user's code raises
            continue
        return True
    return False


def _changes(
    clone: nn.Module, example: Example, chosen: Sequence[tuple[int, int]], before: list[list[int]]
) -> bool:
    """Whether recurrences run over more steps when some axes are longer."""
    for full in (False, True):
        # Behind a stride one more step alone may be none; packed sequences run to the longest.
        with contextlib.suppress(Exception):  # whatever the user's code raises
            if _lengths(clone, _longer(example, chosen, 2, full=full)) != before:
                return True
    return False


def _lengths(model: nn.Module, example: Example) -> list[list[int]]:
    """Run a model to see how long the sequences of each of its recurrences are."""
    lengths: list[list[int]] = []
    hooks = []
    for module in model.modules():
        if isinstance(module, Recurrence):
            made: list[int] = []
            lengths.append(made)
            hooks.append(
                module.register_forward_pre_hook(lambda _, args, made=made: made.append(len(args[0])))
            )
    try:
        run_torch(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return lengths
