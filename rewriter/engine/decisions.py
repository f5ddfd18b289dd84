"""What a model decides by its inputs alone: masks, lengths and places that its own code reads off them.

``(tokens > 0).sum(1)`` or ``x.isnan()`` have no slope, and a sample and a reference that differ in them
have no common sequence to compare. Such decisions are noted in the run of a sample, and made again in that
of the references: what the model computes from them afterwards, it computes as for the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from passes.errors import RewriteError
from passes.operations.catalogue import is_discrete
from passes.user_code.structure import tensors_in
from rewriter.engine.integers.origins import Origins, is_integer


@dataclass(frozen=True)
class Decision:
    """One tensor of integers or truths that was made of the inputs alone.

    Args:
        value: what was decided.
        inputs: which of the inputs it was made of.
        origins: of what it was read off, as :class:`Origins` numbers elements.
        of_each: whether it has one element for each of those.

    """

    value: Tensor
    inputs: frozenset[int]
    origins: Tensor
    of_each: bool


class Decisions(TorchFunctionMode):
    """While active, notes decisions in their order, or makes those of another run again.

    Args:
        inputs: what the model gets.
        again: decisions of a run of as many rows.

    Raises:
        RewriteError: if the other run decided something else, or of another shape.

    Example:
        >>> sample, reference = torch.tensor([[3, 1, 0]]), torch.tensor([[2, 0, 0]])
        >>> with Decisions([sample]) as noted:
        ...     _ = (sample > 0).sum(1)
        >>> with Decisions([reference], noted.found):
        ...     print((reference > 0).sum(1))
        tensor([2])

    """

    def __init__(self, inputs: Sequence[Tensor], again: Sequence[Decision] | None = None) -> None:
        super().__init__()
        self.inputs = list(inputs)
        self.origins = Origins(inputs, floats=True)
        #: Which inputs a tensor was made of, by inputs and constants alone.
        self.made: Any = WeakIdKeyDictionary()
        for k, each in enumerate(inputs):
            self.made[each] = frozenset([k])
        self.found: list[Decision] = []
        self.again = None if again is None else iter(again)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; what it decides is noted, or exchanged for what was decided before."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        taken = tensors_in((args, kwargs))
        sources = frozenset().union(*(self.made.get(each, ()) for each in taken))
        if not sources or not all(each in self.made or _is_constant(each) for each in taken):
            return result
        read = next(each for each in taken if each in self.made)

        def decided(each: Tensor) -> Tensor:
            tokens = all(is_integer(self.inputs[k]) for k in sources)
            if not _is_decided(func, each, taken, tokens=tokens):
                self.made[each] = sources
                return each
            found = Decision(each, sources, self.origins.of(read), each.shape == read.shape)
            if self.again is not None:
                found = self._next(found)
            self.found.append(found)
            return found.value

        with torch._C.DisableTorchFunction():
            # Not complex numbers, for instance.
            followed = [each for each in taken if each in self.origins.codes]
            if followed:
                self.origins.follow(func, args, kwargs, followed, result)
        if isinstance(result, Tensor):
            return decided(result)
        return pytree.tree_map_only(Tensor, decided, result) if tensors_in(result) else result

    def note_made(self, result: Tensor, operands: Sequence[Any]) -> None:
        """Note that an operation, which no mode sees, has made a tensor."""
        tensors = [each for each in operands if isinstance(each, Tensor)]
        if tensors and all(each in self.made for each in tensors):
            self.made[result] = frozenset().union(*(self.made[each] for each in tensors))

    def _next(self, found: Decision) -> Decision:
        assert self.again is not None
        other = next(self.again, None)
        if other is None or other.value.shape != found.value.shape or other.value.dtype != found.value.dtype:
            raise RewriteError(
                "the model's code decides by its inputs, and takes another path for samples than for "
                "references: both must make the same masks and lengths, of the same shapes"
            )
        return other


def _is_decided(func: Any, made: Tensor, taken: Sequence[Tensor], *, tokens: bool) -> bool:
    """Whether a call reads something off numbers: a mask, a length, a place."""
    if made.dim() == 0:
        # Of no row: which way the code goes, perhaps.
        return False
    if made.dtype == torch.bool:
        return not any(each.dtype == torch.bool for each in taken[:1])
    if made.is_floating_point() or made.is_complex() or not is_discrete(func):
        return False
    # A token that is cast, also back and forth, stays one.
    return not (tokens and any(each.shape == made.shape and bool((each == made).all()) for each in taken))


def _is_constant(tensor: Tensor) -> bool:
    """Whether a tensor that was not made of the inputs cannot be a hidden value of the model's."""
    return not isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() and tensor.dim() > 0)
