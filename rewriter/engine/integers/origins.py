"""Follow integers from the model's inputs to where they are looked up.

A lookup may take a column of an input, its reversal, or start tokens put in front of it. Where each number
comes from is found by experiment: whatever runs on integers runs a second time on codes in their place, each
of which stands for one element of the inputs. What comes out as a code was moved, whatever moved it; what
does not was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from passes.lowering.written import written_by
from passes.user_code.structure import map_tensors, tensors_in

#: The origin of a number that hangs on no input, and of one that was computed of several elements.
CONSTANT, COMPUTED = -1, -2
# Codes are far from each other and from the numbers that models count with.
_APART = 2**20
_SEEDS = (0, 1)
_TRIALS = 4
Codes = tuple[Tensor, ...]


class Origins(TorchFunctionMode):
    """While active, knows which elements of the inputs integers are.

    Elements are numbered through all inputs that hold integers, one after the other.

    Args:
        inputs: what the model gets.
        floats: follow floating point numbers, too, as long as they are moved alone.

    Example:
        >>> tokens = torch.tensor([[5, 6], [7, 8]])
        >>> with Origins([tokens]) as origins:
        ...     start = torch.zeros(2, 1, dtype=torch.long)
        ...     given = torch.cat([start, tokens.flip(1)], 1)
        ...     computed = given + tokens[:, :1]
        >>> origins.of(given)
        tensor([[-1,  1,  0],
                [-1,  3,  2]])
        >>> origins.of(computed)
        tensor([[ 0, -2, -2],
                [ 2, -2, -2]])

    """

    def __init__(self, inputs: Sequence[Tensor], *, floats: bool = False) -> None:
        super().__init__()
        self.codes: Any = WeakIdKeyDictionary()
        self.floats = floats
        integers = [each for each in inputs if self._is_followed(each)]
        total = sum(each.numel() for each in integers)
        self.coding = [_coding(total, seed) for seed in _SEEDS]
        begin = 0
        for each in integers:
            end = begin + each.numel()
            self.codes[each] = tuple(code[begin:end].view(each.shape) for code, _ in self.coding)
            begin = end

    def of(self, index: Tensor) -> Tensor:
        """Return the number of the element that each integer is, :data:`CONSTANT` or :data:`COMPUTED`."""
        codes = self.codes.get(index)
        if codes is None:
            return torch.full(index.shape, CONSTANT)
        both = zip(codes, self.coding, strict=True)
        first, second = (self._decoded(code, *coding) for code, coding in both)
        return torch.where(first == second, first, COMPUTED)

    def _decoded(self, codes: Tensor, coding: Tensor, order: Tensor) -> Tensor:
        if not len(coding):
            return torch.full(codes.shape, CONSTANT)
        place = torch.searchsorted(coding[order], codes.contiguous()).clamp_max(len(coding) - 1)
        found = order[place]
        # Numbers that a model's code holds are small.
        other = torch.where(codes.abs() < _APART, CONSTANT, COMPUTED)
        return torch.where(coding[found] == codes, found, other)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, and with codes in the place of numbers once more."""
        kwargs = kwargs or {}
        sources = [each for each in tensors_in((args, kwargs)) if each in self.codes]
        result = func(*args, **kwargs)
        if sources:
            self._cover(written_by(func, args, kwargs))
            self.follow(func, args, kwargs, sources, result)
        return result

    def _cover(self, written: Any) -> None:
        """Give what is written to codes of its own: numbers that are in it stand for themselves."""
        for each in filter(is_integer, tensors_in(written)):
            base = each if each._base is None else each._base
            if base not in self.codes:
                self.codes[base] = tuple(
                    base.long() if base.dtype != torch.long else base.clone() for _ in _SEEDS
                )
            if each not in self.codes:
                view = each.size(), each.stride(), each.storage_offset() - base.storage_offset()
                self.codes[each] = tuple(code.as_strided(*view) for code in self.codes[base])

    def follow(self, func: Any, args: Any, kwargs: Any, sources: list[Tensor], result: Any) -> None:
        """Note the origins of what a call has made of tensors whose origins are known."""
        whole = tensors_in(result)
        made = [each for each in whole if self._is_followed(each)]
        only = sources[0] if len({id(each) for each in sources}) == 1 else None
        if only is not None and len(whole) == 1 and not made and _holds(whole[0], only):
            # A cast, perhaps back and forth.
            self.codes[whole[0]] = self.codes[only]
        if not made and func is not Tensor.__setitem__:
            return
        try:
            found = [list(tensors_in(self._on_codes(k, func, args, kwargs))) for k in range(len(_SEEDS))]
        except Exception:
            # Codes are no places, for instance.
            found = []
        alike = len(found) == len(_SEEDS) and all(len(each) == len(whole) for each in found)
        for place, each in enumerate(whole):
            if not self._is_followed(each):
                continue
            codes = tuple(side[place] for side in found) if alike else ()
            if not codes or any(code.shape != each.shape or code.dtype != torch.int64 for code in codes):
                codes = (torch.full(each.shape, -2 * _APART, device=each.device),) * len(_SEEDS)
            self.codes[each] = codes
        if only is not None and made and isinstance(result, Tensor) and is_integer(result):
            self._follow_each(func, args, kwargs, only, made[0])

    def _is_followed(self, tensor: Tensor) -> bool:
        return is_integer(tensor) or (self.floats and tensor.is_floating_point())

    def _follow_each(self, func: Any, args: Any, kwargs: Any, source: Tensor, made: Tensor) -> None:
        """Where codes were lost, as in ``x + 1``, let each number keep the origin of what it was made of."""
        lost = self.of(made) < 0
        if not bool(lost.any()) or source.shape != made.shape or not source.numel():
            return
        generator = torch.Generator().manual_seed(0)
        for _ in range(_TRIALS):
            some = torch.rand(source.shape, generator=generator).to(source.device) < 0.5
            # Other numbers that occur, because not all may be good for a place.
            other = source.flatten()[torch.randperm(source.numel(), generator=generator)].view_as(source)
            changed = torch.where(some, other, source)
            try:
                with_changes = func(*_put(args, source, changed), **_put(kwargs, source, changed))
            except Exception:
                return
            # A number that is made of another changes nothing else, not even the shape.
            if not isinstance(with_changes, Tensor):
                return
            if with_changes.shape != made.shape or bool((with_changes != made)[~some].any()):
                return
        self.codes[made] = tuple(
            torch.where(lost, before, after)
            for before, after in zip(self.codes[source], self.codes[made], strict=True)
        )

    def _on_codes(self, k: int, func: Any, args: Any, kwargs: Any) -> Any:
        def coded(tensor: Tensor) -> Tensor:
            codes: Codes | None = self.codes.get(tensor)
            return tensor if codes is None else codes[k]

        return func(*map_tensors(coded, args), **map_tensors(coded, kwargs))


def _put(arguments: Any, source: Tensor, value: Tensor) -> Any:
    return map_tensors(lambda each: value if each is source else each, arguments)


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, and not masks."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _holds(made: Tensor, source: Tensor) -> bool:
    return made.shape == source.shape and made.dtype != torch.bool and bool((made == source).all())


def _coding(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the code of each element, and the order in which the codes are sorted."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    codes = torch.empty(count, dtype=torch.int64)
    spread = torch.randint(_APART, 2 * _APART, (count,), generator=generator)
    # Negative: a number that is taken for a size, by one_hot or repeat_interleave, would fill the memory.
    codes[order] = -((count - torch.arange(count)) * 4 * _APART + spread)
    return codes, order
