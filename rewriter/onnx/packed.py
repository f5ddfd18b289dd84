"""Packed sequences while torch exports: padded ones whose steps behind the end are masked.

What packing gives depends on the lengths as values, which a graph does not know. So here ``data`` of a packed
sequence stays padded, (T, B, F), zero behind each end, and ``batch_sizes`` has as many steps as the longest
sequence, a size of the graph's own. Operations on each element of ``data`` mean the same for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from passes.recurrent.layout import SequenceBegin, SequenceEnd, SequenceLayout, check_tensor
from passes.replacement import become


class PaddedWhilePacked(TorchFunctionMode):
    """Within it, packing pads and unpacking takes the padding off, down to the longest sequence.

    Example:
        >>> from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
        >>> with PaddedWhilePacked():
        ...     packed = pack_padded_sequence(torch.ones(4, 2, 3), torch.tensor([3, 2]))
        ...     padded, lengths = pad_packed_sequence(packed)
        >>> packed.data.shape, padded.shape, lengths
        (torch.Size([4, 2, 3]), torch.Size([3, 2, 3]), tensor([3, 2]))

    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            return _packed(*args)
        if name == "_pad_packed_sequence":
            return _padded(*args)
        return func(*args, **(kwargs or {}))


def _packed(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    if batch_first:
        x = x.transpose(0, 1)
    mask = torch.arange(x.shape[0])[:, None] < lengths[None, :]
    longest: Any = lengths.max().item()
    torch._check(longest >= 1)  # type: ignore[no-untyped-call]
    torch._check(longest <= x.shape[0])  # type: ignore[no-untyped-call]
    return _masked(x, mask, 0.0), mask.sum(1).narrow(0, 0, longest)


def _padded(
    data: Tensor, sizes: Tensor, batch_first: bool, value: float, total: int
) -> tuple[Tensor, Tensor]:
    mask = _mask(data, sizes)
    x = _masked(data, mask, value)
    if _same(total, sizes.shape[0]):
        x = x.narrow(0, 0, sizes.shape[0])
    elif not _same(total, data.shape[0]):
        # A total length that is no size of the input.
        padding = [0] * (2 * x.dim() - 1) + [total - data.shape[0]]
        x = nn.functional.pad(x, padding, value=value)
    return (x.transpose(0, 1) if batch_first else x), mask.sum(0)


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same expression; to compare them would be a condition on values."""
    a, b = (each.node.expr if isinstance(each, torch.SymInt) else each for each in (a, b))
    return bool(a == b)


def _mask(data: Tensor, sizes: Tensor) -> Tensor:
    """Return (T, B), False behind the end of each sequence."""
    sizes = nn.functional.pad(sizes, (0, data.shape[0] - sizes.shape[0]))
    return sizes[:, None] > torch.arange(data.shape[1])[None, :]


def _masked(x: Tensor, mask: Tensor, value: float) -> Tensor:
    mask = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))
    return torch.where(mask, x, torch.full((), value, dtype=x.dtype))


class _Begin(SequenceBegin):
    """A :class:`SequenceBegin` that takes the packed sequences of this file."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, ...] | None, weight: Tensor
    ) -> tuple[Tensor | SequenceLayout | None, ...]:
        """Return what the original returns."""
        if not isinstance(input, PackedSequence):
            return super().forward(input, hx, weight)
        self._check_features(input.data, (3,), "packed data (sum of lengths, input_size)")
        check_tensor(self.name, input.data, weight)
        x, mask = input.data, _mask(input.data, input.batch_sizes)
        if input.unsorted_indices is not None:
            x, mask = x.index_select(1, input.unsorted_indices), mask.index_select(1, input.unsorted_indices)
        layout = SequenceLayout(True, input, mask.sum(0))
        return (x, mask.unsqueeze(-1), layout, *self._states(hx, x, True))


class _End(SequenceEnd):
    """A :class:`SequenceEnd` that gives the packed sequences of this file."""

    def _output(self, layout: SequenceLayout, out: Tensor) -> Tensor | PackedSequence:
        packed = layout.packed
        if packed is None:
            return super()._output(layout, out)
        if packed.sorted_indices is not None:
            out = out.index_select(1, packed.sorted_indices)
        return packed._replace(data=_masked(out, _mask(out, packed.batch_sizes), 0.0))


def take_padded(model: nn.Module) -> None:
    """Let the rewritten layers of ``model``, which is changed in place, take sequences packed so."""
    for module in list(model.modules()):
        if type(module) is SequenceBegin:
            sizes = (module.input_size, module.state_sizes, module.directions)
            become(module, _Begin(module.name, *sizes, batch_first=module.batch_first))
        elif type(module) is SequenceEnd:
            become(module, _End(batch_first=module.batch_first, states=module.states))
