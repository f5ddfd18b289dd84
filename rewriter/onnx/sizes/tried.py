"""Sizes at which an exported model is compared: the smallest, the example's, far larger, beyond branches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rewriter.onnx.example import Example
from rewriter.onnx.sizes.assumptions import Assumptions, Condition
from rewriter.onnx.sizes.axes import FreeAxes, at_sizes, counts_steps

# Numbers in the inputs, and steps, that are worth a run.
_MOST_NUMBERS = 2**24
_MOST_STEPS = 2**14
# Longer than what lists of a fixed length and pads to one usually are.
_FAR = 67


@dataclass(frozen=True)
class Trial:
    """Sizes to compare at, by name of the axis, inputs, and the line of a branch that goes otherwise."""

    sizes: Mapping[str, int]
    inputs: Example
    line: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name} of {size}" for name, size in self.sizes.items()) or "single size"


@dataclass
class Sizes:
    """What is known of each free axis.

    Args:
        own: size in the example.
        least: smallest size that the model takes.
        most: largest that it takes, as far as torch.export knows, or None.

    """

    own: dict[str, int]
    least: dict[str, int] = field(default_factory=dict)
    most: dict[str, int | None] = field(default_factory=dict)

    def far(self, name: str, k: int, *, batch: bool) -> int:
        """Return a size well beyond the example's, of rows or of steps; axes have different ones."""
        own = self.own[name]
        size = 2 * own + 1 if batch or own > _FAR else max(_FAR, 4 * own + 3) + 2 * k
        most = self.most[name]
        return size if most is None else min(size, most)


def trials(
    example: Example,
    free: FreeAxes,
    own: Mapping[str, int],
    batch: Collection[str],
    assumptions: Assumptions,
    runs: Callable[[Example], bool],
) -> tuple[Sizes, list[Trial]]:
    """Choose the sizes to compare at.

    Args:
        example: the inputs.
        free: the named axes.
        own: their sizes.
        batch: names of axes that are rows, of which a few show as much as many.
        assumptions: of torch.export.
        runs: whether the model takes inputs.

    Returns:
        What is known of each axis, and the trials: all axes at their smallest, as they are, far larger, then
        one for each way to break a condition.

    """
    sizes = Sizes(dict(own))
    bounds = {axis.name: axis for axes in free for axis in axes.values()}
    symbols, conditions = _symbols(free, assumptions)

    def taken(at: Mapping[str, int]) -> Iterator[Example]:
        # Packed to the longest where none is as long as the axis; what only looks like lengths stays.
        yield resized(example, free, own, at, shorter=1)
        yield resized(example, free, own, at)
        yield at_sizes(example, free, at)

    def takes(at: Mapping[str, int]) -> bool:
        return any(map(runs, taken(at)))

    for name in own:
        sizes.least[name] = _least(name, bounds[name].least, own, takes)
        sizes.most[name] = bounds[name].most

    def trial(at: Mapping[str, int], line: str = "") -> Trial:
        return Trial(at, next(filter(runs, taken(at)), resized(example, free, own, at)), line)

    beyond: list[Trial] = []
    for condition in conditions:
        for name, symbol in symbols.items():
            if symbol not in condition.holds.free_symbols:
                continue
            for size in condition.first_broken(
                symbol, {symbols[each]: n for each, n in own.items() if each in symbols}
            ):
                if size < sizes.least[name] or not _within(size, bounds[name].most):
                    continue
                there = {**own, name: size}
                affordable = _affordable(example, free, name, size, own)
                if affordable and takes(there):
                    beyond.append(trial(there, condition.line))
                elif size > own[name] and _is_bound(condition, affordable=affordable):
                    most = sizes.most[name]
                    sizes.most[name] = size - 1 if most is None else min(most, size - 1)
    chosen = [
        trial({name: sizes.least[name] for name in own}),
        trial(dict(own)),
        trial({name: sizes.far(name, k, batch=name in batch) for k, name in enumerate(own)}),
        *beyond,
    ]
    return sizes, [
        each for k, each in enumerate(chosen) if each.sizes not in [old.sizes for old in chosen[:k]]
    ]


def resized(
    example: Example, free: FreeAxes, own: Mapping[str, int], sizes: Mapping[str, int], *, shorter: int = 0
) -> Example:
    """Return the inputs at other sizes; integers that count the steps of an axis, as lengths do, follow it.

    Args:
        example: the inputs.
        free: the named axes.
        own: their sizes in the example.
        sizes: the new ones.
        shorter: what is taken off lengths where an axis becomes longer.

    """
    made = at_sizes(example, free, sizes)
    tensors = []
    for tensor, old, axes in zip(made.tensors, example.tensors, free, strict=True):
        for name, size in sizes.items():
            names = [axis.name for axis in axes.values()]
            if size != own[name] and name not in names and counts_steps(old, own[name]):
                tensor = (tensor * size).div(own[name], rounding_mode="floor")
                tensor = (tensor - shorter * (size > own[name])).clamp(min=1)
                break
        tensors.append(tensor)
    return made.with_tensors(tensors)


def _symbols(free: FreeAxes, assumptions: Assumptions) -> tuple[dict[str, Any], list[Condition]]:
    """Return a symbol for each name, and the conditions with no other symbol for it."""
    symbols: dict[str, Any] = {}
    same: dict[Any, Any] = {}
    for shape, axes in zip(assumptions.shapes, free, strict=True):
        for place, axis in axes.items():
            same[shape[place]] = symbols.setdefault(axis.name, shape[place])
    return symbols, [replace(each, holds=each.holds.xreplace(same)) for each in assumptions.conditions]


def line_broken(free: FreeAxes, assumptions: Assumptions, sizes: Mapping[str, int]) -> str:
    """Return the user's line with the first condition that does not hold at some sizes, ``""`` if all do."""
    symbols, conditions = _symbols(free, assumptions)
    at = {symbols[name]: size for name, size in sizes.items() if name in symbols}
    return next((each.line for each in conditions if each.line and each.is_broken(at)), "")


def _least(name: str, least: int, own: Mapping[str, int], runs: Callable[[Mapping[str, int]], bool]) -> int:
    """Find the smallest size that a model takes, which may be more than 1 behind a window."""
    low, high = least - 1, own[name]
    if low + 1 >= high or runs({**own, name: least}):
        return min(least, high)
    low = least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs({**own, name: middle}) else (middle, high)
    return high


def _within(size: int, most: int | None) -> bool:
    return most is None or size <= most


def _affordable(example: Example, free: FreeAxes, name: str, size: int, own: Mapping[str, int]) -> bool:
    numbers = sum(
        tensor.numel()
        for tensor, axes in zip(example.tensors, free, strict=True)
        if name in [axis.name for axis in axes.values()]
    )
    return size <= _MOST_STEPS and numbers // max(1, own[name]) * size <= _MOST_NUMBERS


def _is_bound(condition: Condition, *, affordable: bool) -> bool:
    """Whether a condition bounds an axis from above, rather than asking that it be even or so.

    Beyond what is worth a run every condition does.
    """
    if len(condition.holds.free_symbols) > 1:
        return False
    return not affordable or condition.holds.func.__name__ in (
        "LessThan",
        "StrictLessThan",
        "GreaterThan",
        "StrictGreaterThan",
    )
