"""What surrounds the arithmetic of attention: batch first rows, and many kinds of masks made one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.errors import InputError
from passes.leaves import Layout


class MaskScores(Layout):
    """Add a mask to the scores of attention.

    Args:
        causal: no position sees a later one; excludes another mask.

    Example:
        >>> scores, closed = MaskScores()(torch.zeros(1, 2, 2), torch.tensor([[True, False], [False, False]]))
        >>> scores
        tensor([[[0., -inf],
                 [0., 0.]]])
        >>> closed
        tensor([[False],
                [ True]])

    """

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal

    def forward(
        self, scores: Tensor, mask: Tensor | None, open_closed: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return the masked scores, (*, L, S), and the rows in which nothing is left, if there is a mask.

        Such rows get scores of zero, so that their softmax is a number; without ``open_closed`` they stay.

        Raises:
            InputError: for a mask beside ``causal``.

        """
        if self.causal:
            if mask is not None:
                raise InputError(
                    "scaled_dot_product_attention: expected no attn_mask with is_causal=True, got both; add "
                    "the causal mask to attn_mask and leave is_causal out"
                )
            return scores + causal_mask(scores), None
        if mask is None:
            return scores, None
        added = additive(~mask if mask.dtype is torch.bool else mask, scores)
        if not open_closed:
            return scores + added, None
        closed = (added == -torch.inf).all(-1, keepdim=True)
        return (scores + added).masked_fill(closed, 0), closed


class CloseRows(Layout):
    """Make weights zero in the rows that a mask leaves nothing of, as torch does.

    Example:
        >>> CloseRows()(torch.ones(2, 1), torch.tensor([[True], [False]]))
        tensor([[0.],
                [1.]])

    """

    def forward(self, weights: Tensor, closed: Tensor | None) -> Tensor:
        """Return ``weights`` with zeros where ``closed``."""
        return weights if closed is None else weights.masked_fill(closed, 0)


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a mask of what is blocked into one that is added.

    Example:
        >>> additive(torch.tensor([True, False]), torch.zeros(1))
        tensor([-inf, 0.])

    """
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def causal_mask(scores: Tensor) -> Tensor:
    """Return the mask, (L, S), that hides later positions, to be added to ``scores``.

    Example:
        >>> causal_mask(torch.zeros(1, 2, 2))
        tensor([[0., -inf],
                [0., 0.]])

    """
    return torch.full_like(scores[(0,) * (scores.dim() - 2)], -torch.inf).triu(1)


class Begun(NamedTuple):
    """What :class:`AttentionBegin` hands on.

    Args:
        query: (N, L, E).
        key: (N, S, E_k).
        value: (N, S, E_v).
        mask: to be added to scores (N, heads, L, S), in a shape that broadcasts; or None.
        batched: whether the caller's tensors had a batch dimension.

    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    batched: bool


class AttentionBegin(Layout):
    """Turn whatever ``nn.MultiheadAttention`` accepts into batch-first tensors and one mask.

    Args:
        heads: number of heads.
        batch_first: whether batched tensors are (N, L, E) rather than (L, N, E).
        extra: positions that the layer appends to keys and values, open to all.
        sizes: features of queries, keys and values; none are checked without them.

    Example:
        >>> x = torch.zeros(3, 1, 2)
        >>> AttentionBegin(1, batch_first=False)(x, x, x).query.shape
        torch.Size([1, 3, 2])

    """

    # Also of those that were saved before they knew.
    sizes: tuple[int, ...] = ()

    def __init__(self, heads: int, *, batch_first: bool, extra: int = 0, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.heads = heads
        self.batch_first = batch_first
        self.extra = extra
        self.sizes = sizes

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        need_weights: bool = True,
        is_causal: bool | None = False,
    ) -> Begun:
        """Return the tensors and the mask; arguments are those of the layer.

        Raises:
            InputError: for shapes that torch's layer does not take.

        """
        try:
            # What torch itself asks.
            check = cast("Callable[..., bool]", vars(F)["_mha_shape_check"])
            batched = check(query, key, value, key_padding_mask, attn_mask, self.heads)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"{self._shown()}: {error}") from error
        given = {"query": query, "key": key, "value": value}
        for (label, tensor), size in zip(given.items(), self.sizes, strict=False):
            if tensor.shape[-1] != size:
                raise InputError(
                    f"{self._shown()}: expected {label} with {size} features last, got {tuple(tensor.shape)}"
                )
        if is_causal and attn_mask is None:
            raise InputError(
                f"{self._shown()}: is_causal is a hint about attn_mask, expected one, got None; pass it, "
                "or leave is_causal out"
            )
        query, key, value = (self._rows(each, batched) for each in (query, key, value))
        mask = self._mask(query, key, key_padding_mask, attn_mask, need_weights, bool(is_causal))
        return Begun(query, key, value, mask, batched)

    def _shown(self) -> str:
        return self.name or "MultiheadAttention"

    def _rows(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _mask(
        self,
        query: Tensor,
        key: Tensor,
        padding: Tensor | None,
        attention: Tensor | None,
        need_weights: bool,
        is_causal: bool,
    ) -> Tensor | None:
        batch, length, source = query.shape[0], query.shape[1], key.shape[1]
        if is_causal and padding is None and not need_weights:
            # Given the hint, torch does not look at the mask.
            return causal_mask(query.new_empty(length, source + self.extra))
        total = None
        if attention is not None:
            expected = (length, source) if attention.dim() == 2 else (batch * self.heads, length, source)
            _check(self._shown(), attention, "attn_mask", expected)
            total = F.pad(additive(attention, query), (0, self.extra))
            total = total if attention.dim() == 2 else torch.unflatten(total, 0, (batch, self.heads))
        if padding is not None:
            wanted = (batch, source) if padding.dim() == 2 else (source,)
            _check(self._shown(), padding, "key_padding_mask", wanted)
            padded = F.pad(additive(padding, query), (0, self.extra)).view(batch, 1, 1, -1)
            total = padded if total is None else total + padded
        return total


def _check(layer: str, mask: Tensor, name: str, expected: tuple[int, ...]) -> None:
    if tuple(mask.shape) != expected:
        raise InputError(f"{layer}: expected {name} of shape {expected}, got {tuple(mask.shape)}")


class AttentionEnd(Layout):
    """Bring the result of attention back into the caller's layout.

    Args:
        batch_first: as for :class:`AttentionBegin`.

    Example:
        >>> AttentionEnd(batch_first=False)(torch.zeros(1, 3, 2), None, True)[0].shape
        torch.Size([3, 1, 2])

    """

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first

    def forward(self, output: Tensor, weights: Tensor | None, batched: bool) -> tuple[Tensor, Tensor | None]:
        """Return output and weights, (N, L, E) and (N, ..., L, S), as the caller expects them."""
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        # Laid out in memory as torch does, for dropout after it draws in the order of the memory.
        sequence_first = output.transpose(0, 1).contiguous()
        return sequence_first.transpose(0, 1) if self.batch_first else sequence_first, weights
