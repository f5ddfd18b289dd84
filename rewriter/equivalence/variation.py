"""Other inputs like the example: other numbers, and other integers and sizes where the models take them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from rewriter.places import map_tensors, walk

# More ways to vary the inputs than are worth a run of the models each.
_MANY = 24
# Dimensions of a tensor that may be batch and time; what comes behind them are features.
_LEADING = 2


class Axes(NamedTuple):
    """Dimensions that have one size in the example, and grow together.

    Args:
        size: in the example.
        where: the place of each tensor in the inputs, and the dimension.

    """

    size: int
    where: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{place} dimension {axis}" for place, axis in self.where)
        return f"size {self.size} of {named}"


@dataclass(frozen=True)
class Plan:
    """What differs from one seed to the next.

    Args:
        sizes: that grow: by 1 for seed 1, by 2 for seed 2.
        integers: whether integers are drawn anew, and the lengths of packed sequences.
        refused: what stays as in the example because a model refuses it otherwise, with the reason.

    Example:
        >>> Plan().integers
        False

    """

    sizes: tuple[Axes, ...] = ()
    integers: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        varied = ["numbers", *(["integers"] if self.integers else []), *map(str, self.sizes)]
        return f"from seed to seed vary: {'; '.join(varied)}"


NUMBERS = Plan()


def plan(example_inputs: Any, refuses: Callable[[Any], str]) -> Plan:
    """Find out what of the inputs may vary.

    Args:
        example_inputs: as :func:`rewriter.decompose` takes them.
        refuses: tries inputs, and returns why a model does not take them, or ``""``.

    Example:
        >>> found = plan(torch.zeros(4, 5, 3), lambda x: "" if x.shape[1] == 5 else "five steps, please")
        >>> str(found)
        'from seed to seed vary: numbers; size 4 of input dimension 0'
        >>> found.refused
        {'size 5 of input dimension 1': 'five steps, please'}

    """
    groups, integers = _groups(example_inputs), _has_integers(example_inputs)
    # A reason for each thing that is not to vary.
    refused: dict[str, str] = {}
    for chosen, redrawn in itertools.islice(_choices(groups, integers), _MANY):
        tried = Plan(chosen, redrawn)
        reason = refuses(redraw(example_inputs, 1, tried)) if tried != NUMBERS else ""
        if not reason:
            left = [str(each) for each in groups if each not in chosen]
            left += ["integers"] if integers and not redrawn else []
            return Plan(chosen, redrawn, {each: refused[each] for each in left if each in refused})
        # The fewer things vary, the surer it is that this is the reason.
        refused |= dict.fromkeys([*map(str, chosen), *(["integers"] if redrawn else [])], reason)
    return NUMBERS


def _choices(groups: list[Axes], integers: bool) -> Iterator[tuple[tuple[Axes, ...], bool]]:
    """Yield what may vary together, most things first."""
    for count in range(len(groups), -1, -1):
        for chosen in itertools.combinations(groups, count):
            if integers:
                yield chosen, True
            yield chosen, False


def _groups(example_inputs: Any) -> list[Axes]:
    found: dict[int, list[tuple[str, int]]] = {}
    tensors = _dense(example_inputs)
    if _packed(example_inputs):
        # Their rows are sorted by length, and lie one step behind the other.
        return []
    # One row alone has no other dimension of its size: states have one layer, too.
    least = 1 if tensors and all(x.dim() and x.shape[0] == 1 for _, x in tensors) else 2
    for place, tensor in tensors:
        for axis in range(min(_LEADING, tensor.dim())):
            if tensor.shape[axis] >= (least if axis == 0 else 2):
                found.setdefault(tensor.shape[axis], []).append((place, axis))
    groups = [Axes(size, tuple(where)) for size, where in found.items()]
    # The second dimension is one of features more often than the first: it is the first to be left out.
    return sorted(groups, key=lambda each: min(axis for _, axis in each.where))


def _dense(example_inputs: Any) -> list[tuple[str, Tensor]]:
    return [
        (place, each)
        for place, each in walk(example_inputs, "input")
        if isinstance(each, Tensor) and each.layout == torch.strided and not each.is_quantized
    ]


def _packed(example_inputs: Any) -> set[str]:
    """Return the places of what is inside of packed sequences and holds their lengths and order."""
    packed = [place for place, each in walk(example_inputs, "input") if isinstance(each, PackedSequence)]
    return {f"{place}.{name}" for place in packed for name in PackedSequence._fields if name != "data"}


def _has_integers(example_inputs: Any) -> bool:
    kept = _packed(example_inputs)
    return bool(kept) or any(_is_redrawn(x) for place, x in _dense(example_inputs) if place not in kept)


def _is_redrawn(tensor: Tensor) -> bool:
    """Whether a tensor holds integers that are neither all the same nor a mask of zeros and ones."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool or not tensor.numel():
        return False
    low, high = _range(tensor)
    return low < high and not (low == 0 and high == 1)


def redraw(example_inputs: Any, seed: int, plan: Plan = NUMBERS) -> Any:
    """Return inputs of the same form with other numbers, uniform over the range of the example's.

    Floats that are whole numbers stay (masks, counts), and so does whatever is not finite. A constant is
    drawn around its value, zeros from -1 to 1. Where the plan says so, integers are drawn from the range of
    the example's, in its order if they are sorted, the largest kept, and dimensions grow by ``seed``.

    Example:
        >>> x, n = redraw((torch.zeros(3), torch.tensor([2, 1])), seed=1)
        >>> bool((x != 0).all()), n
        (True, tensor([2, 1]))
        >>> redraw(torch.zeros(4, 5), 2, Plan((Axes(4, (("input", 0),)),))).shape
        torch.Size([6, 5])

    """
    generator = torch.Generator().manual_seed(seed)
    kept = _packed(example_inputs)
    if plan.integers and kept:
        example_inputs = pytree.tree_map(
            lambda each: _repacked(each, generator) if isinstance(each, PackedSequence) else each,
            example_inputs,
            is_leaf=lambda each: isinstance(each, PackedSequence),
        )
    example = dict(walk(example_inputs, "input"))
    growing = [each for axes in plan.sizes for each in axes.where]

    def other(place: str, tensor: Tensor) -> Tensor:
        if place in kept or tensor.layout != torch.strided or tensor.is_quantized:
            return tensor
        for where, axis in growing:
            if where == place:
                tensor = _grown(tensor, axis, seed)
        if plan.integers and _is_redrawn(tensor):
            return _other_integers(tensor, generator, _order(example[place]))
        return _other_floats(tensor, generator) if tensor.is_floating_point() else tensor

    return map_tensors(example_inputs, "input", other)


def _grown(tensor: Tensor, axis: int, more: int) -> Tensor:
    size = tensor.shape[axis]
    index = torch.arange(size + more, device=tensor.device) % size
    return tensor.detach().index_select(axis, index)


def _other_floats(tensor: Tensor, generator: torch.Generator) -> Tensor:
    finite = tensor.detach()[tensor.isfinite()].double()
    if finite.numel() == 0:
        return tensor
    low, high = finite.min().item(), finite.max().item()
    if low == high:
        low, high = (0.5 * low, 1.5 * low) if low else (-1.0, 1.0)
    elif bool((finite == finite.round()).all()):
        return tensor
    drawn = low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return torch.where(tensor.isfinite(), drawn.to(tensor), tensor.detach())


def _other_integers(tensor: Tensor, generator: torch.Generator, order: str) -> Tensor:
    low, high = _range(tensor)
    drawn = torch.randint(low, high + 1, (tensor.numel(),), generator=generator)
    # The longest sequence is as long as the tensor that holds them.
    drawn[int(tensor.flatten().argmax())] = high
    if order:
        drawn = drawn.sort(descending=order == "down").values
    return drawn.reshape(tensor.shape).to(tensor)


def _order(tensor: Tensor) -> str:
    """Tell whether numbers are sorted, as lengths may have to be: ``"up"``, ``"down"`` or ``""``."""
    if tensor.dim() != 1:
        return ""
    steps = tensor.detach().to("cpu", torch.int64).diff()
    return "down" if bool((steps <= 0).all()) else "up" if bool((steps >= 0).all()) else ""


def _repacked(packed: PackedSequence, generator: torch.Generator) -> PackedSequence:
    """Pack the same numbers at other lengths."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    in_order = packed.sorted_indices is None
    drawn = torch.randint(1, int(lengths.max()) + 1, lengths.shape, generator=generator)
    drawn = drawn.sort(descending=True).values if in_order else drawn
    drawn[lengths.argmax()] = lengths.max()
    return pack_padded_sequence(padded, drawn, batch_first=True, enforce_sorted=in_order)


def _range(tensor: Tensor) -> tuple[int, int]:
    whole = tensor.detach().to("cpu", torch.int64)
    return int(whole.min()), int(whole.max())
