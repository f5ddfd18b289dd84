"""Find rows of a batch that influence each other, and the module in which they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.recurrent.recurrence import Recurrence
from passes.user_code.observe import ModuleCall, module_calls
from passes.user_code.source import where_failed

_AS_TIME = (
    ", and reads dimension 0 as time; make it with batch_first=True, or pass it (time, batch, features)"
)
# Rows that run; what couples rows does so with few.
_ROWS = 4
# Of the largest number of an output: other rows are computed in another order at most.
_MOVED = {torch.float32: 1e-4, torch.float64: 1e-9}


def check_rows_apart(model: nn.Module, select: Callable[[Any], Any], inputs: list[Tensor]) -> None:
    """Raise unless each row of the outputs hangs on its own row of the inputs alone.

    Args:
        model: in evaluation mode; copies of it run.
        select: picks the output that is explained.
        inputs: some rows.

    Raises:
        RewriteError: naming the module in which rows begin to influence each other; or if the model does
            not run on another number of them.

    Example:
        >>> check_rows_apart(nn.Linear(2, 1), lambda y: y, [torch.randn(3, 2)])
        >>> check_rows_apart(nn.LSTM(2, 1), lambda y: y[0][:, -1], [torch.randn(3, 5, 2)])
        Traceback (most recent call last):
        passes.errors.RewriteError: the rows of a batch influence each other in the model itself (LSTM): ...

    """
    rows = [each[:_ROWS].clone() for each in inputs]
    if len(rows[0]) < _ROWS:
        # Another number than the model is known to take; what is sorted stays so.
        rows = [torch.cat([each, each[-1:]]) for each in rows]
    count = len(rows[0])
    try:
        plain = _run(model, select, rows)
    except Exception as error:
        _check_takes_any_number(model, select, inputs, count, error)
        return
    if plain is None:
        return
    if len(plain[0]) != count:
        _check_reads_rows_as_rows(model, plain[1], count)
        return
    for before, after in _with_another_first_row(rows):
        try:
            plain = plain if before is rows else _run(model, select, before)
            found = _run(model, select, after)
        except Exception:
            # A model may refuse what is made up.
            return
        if plain is None or found is None or plain[0].shape != found[0].shape:
            return
        if _moved(plain[0][1:], found[0][1:], plain[0]):
            place = _where(model, plain[1], found[1], count)
            raise RewriteError(f"the rows of a batch influence each other {place}")


def why_coupled(model: nn.Module, select: Callable[[Any], Any], inputs: list[Tensor]) -> str:
    """Return in which module rows influence each other; nothing if they do not, or random numbers are drawn.

    Args:
        model: as for :func:`check_rows_apart`.
        select: likewise.
        inputs: likewise.

    Example:
        >>> why_coupled(nn.Linear(2, 1), lambda y: y, [torch.randn(3, 2)])
        ''

    """
    try:
        first, again = (_run(model, select, inputs) for _ in range(2))
        if first is None or again is None or not torch.equal(first[0], again[0]):
            return ""
        check_rows_apart(model, select, inputs)
    except RewriteError as error:
        return str(error)
    except Exception:
        return ""
    return ""


def _with_another_first_row(rows: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield pairs of batches that differ in the first row alone.

    A maximum over the batch moves with one row or another, so all of them are asked.
    """
    # Of both signs, for what moves one way only.
    for factor in (4.0, -4.0):
        yield rows, [_with_a_scaled_first_row(each, factor) for each in rows]
    for k, j in ((0, 1), (1, 0)):
        alike = [each[k : k + 1].expand_as(each) for each in rows]
        yield alike, [torch.cat([each[j : j + 1], same[1:]]) for each, same in zip(rows, alike, strict=True)]


def _with_a_scaled_first_row(rows: Tensor, factor: float) -> Tensor:
    changed = rows.clone()
    if rows.is_floating_point():
        # What is padded with zeros stays so.
        changed[0] = torch.where(rows[0] == 0, rows[0], factor * (rows[0] + 0.5))
    return changed


def _run(
    model: nn.Module, select: Callable[[Any], Any], rows: list[Tensor]
) -> tuple[Tensor, list[ModuleCall]] | None:
    """Return the output, and the calls of modules on the way to it."""
    output, calls = module_calls(model, tuple(each.clone() for each in rows))
    output = select(output)
    return (output, calls) if isinstance(output, Tensor) and output.dim() else None


def _check_reads_rows_as_rows(model: nn.Module, calls: list[ModuleCall], count: int) -> None:
    """Raise for a recurrent layer that takes rows for steps, where the model does not give one of each."""
    modules = dict(model.named_modules())
    for name, taken, _ in calls:
        module = modules.get(name)
        forgotten = isinstance(module, nn.RNNBase) and not module.batch_first
        if forgotten and taken and taken[0].dim() == 3 and taken[0].shape[0] == count:
            place = _takes(name, module, taken)
            raise RewriteError(f"the rows of a batch influence each other in {place}{_AS_TIME}")


def _takes(name: str, module: nn.Module | None, taken: list[Tensor]) -> str:
    shapes = ", ".join(str(tuple(each.shape)) for each in taken[:1])
    return f"{name or 'the model itself'} ({type(module).__name__}): it takes {shapes}"


def _check_takes_any_number(
    model: nn.Module, select: Callable[[Any], Any], inputs: list[Tensor], count: int, error: Exception
) -> None:
    """Raise if the model fails on so many rows because of their number.

    If it fails on all of them, too, that is said where they are run for its outputs.
    """
    try:
        _run(model, select, inputs)
    except Exception:
        return
    raise RewriteError(
        f"the model runs on {len(inputs[0])} rows and not on {count}: {where_failed(error)}, "
        f"{type(error).__name__}: {error}; let it take any number of rows, making initial states and "
        "the like for x.shape[0] of them"
    ) from error


def _moved(a: Tensor, b: Tensor, whole: Tensor) -> bool:
    if not a.is_floating_point():
        return False
    size = float(whole.abs().nan_to_num(0, 0, 0).max()) if whole.numel() else 0.0
    return bool(((a - b).abs() > _MOVED.get(a.dtype, 1e-2) * size).any())


def _where(model: nn.Module, plain: list[ModuleCall], found: list[ModuleCall], count: int) -> str:
    modules = dict(model.named_modules())
    for (name, taken, given), (other, taken_now, given_now) in zip(plain, found, strict=False):
        if name != other:
            break
        if _apart(taken, taken_now, count) and not _apart(given, given_now, count):
            module = modules.get(name)
            if isinstance(module, Recurrence):
                # It takes time first, whatever the layer that it was made of takes.
                return f"in {name.rsplit('.', 2)[0]}{_AS_TIME}"
            place = f"in {_takes(name, module, taken)}"
            if isinstance(module, nn.RNNBase) and not module.batch_first:
                return f"{place}{_AS_TIME}"
            return f"{place}; a row must be computed from its own input alone"
    in_model = not plain or plain[-1].name or not _apart(plain[-1].given, found[-1].given, count)
    place = "in the model's own code" if in_model else "in output="
    return f"{place}; a row must be computed from its own input alone"


def _apart(before: list[Tensor], now: list[Tensor], count: int) -> bool:
    """Whether only the first row differs, along some dimension that may be that of the batch."""
    for a, b in zip(before, now, strict=False):
        if a.shape != b.shape or not a.is_floating_point():
            continue
        moved = (a - b).abs() > _MOVED.get(a.dtype, 1e-2) * float(a.abs().max() if a.numel() else 0)
        if bool(moved.any()) and not any(_first_alone(moved, dim, count) for dim in range(a.dim())):
            return False
    return True


def _first_alone(moved: Tensor, dim: int, count: int) -> bool:
    """Whether only the first of so many rows moved: along a dimension, which may hold time, too."""
    size = moved.shape[dim]
    if size % count:
        return False
    each = size // count
    places = moved.movedim(dim, 0).reshape(size, -1).any(1)
    return not bool(places[each:].any()) or not bool(places.view(each, count)[:, 1:].any())
