"""Packing of sequences in a form whose gradient ``torch.func.vmap`` can batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PackByIndex(TorchFunctionMode):
    """While active in a thread, ``pack_padded_sequence`` selects rows instead of calling torch's kernel.

    The result is the same; the kernel's gradient has no batching rule.

    Example:
        >>> from torch.nn.utils.rnn import pack_padded_sequence
        >>> x = torch.arange(6.0).view(3, 2, 1)
        >>> with PackByIndex():
        ...     packed = pack_padded_sequence(x, torch.tensor([3, 1]))
        >>> packed.data.flatten(), packed.batch_sizes
        (tensor([0., 1., 2., 4.]), tensor([2, 1, 1]))

    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over that one function."""
        if func is torch._C._VariableFunctions._pack_padded_sequence:
            return _pack(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    rows = input.shape[0] * input.shape[1]
    places = torch.arange(rows, device=input.device).view(*input.shape[:2], 1)
    order, batch_sizes = torch._C._VariableFunctions._pack_padded_sequence(places, lengths, batch_first)
    return input.flatten(0, 1).index_select(0, order.flatten()), batch_sizes
