"""Attention made of products, a softmax and linear maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.operations.attention.layout import AttentionBegin, AttentionEnd, CloseRows, MaskScores
from passes.operations.products.bilinear import Bilinear
from passes.operations.softmax.atoms import SoftmaxAtom
from passes.stand_in import StandIn


class DotProductAttention(nn.Module):
    """``softmax(query @ key.T * scale + mask) @ value``.

    Args:
        dropout: acts on the weights, if given.
        causal: no position sees a later one.
        grouped: keys and values have fewer heads, each of which serves several of the query's.
        own_scale: the scale is one over the root of the query's size; else it is an operand.

    Example:
        >>> x = torch.randn(1, 3, 2)
        >>> result, weights = DotProductAttention()(x, x, x, None, None, True)
        >>> torch.allclose(result, F.scaled_dot_product_attention(x, x, x), atol=1e-6), weights.shape
        (True, torch.Size([1, 3, 3]))

    """

    def __init__(
        self,
        dropout: nn.Module | None = None,
        *,
        causal: bool = False,
        grouped: bool = False,
        own_scale: bool = True,
    ) -> None:
        super().__init__()
        self.grouped = grouped
        self.own_scale = own_scale
        self.scores = Bilinear("matmul")
        self.mask = MaskScores(causal)
        self.softmax = SoftmaxAtom(-1)
        self.close = CloseRows()
        self.dropout = dropout
        self.mix = Bilinear("matmul")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: Any,
        open_closed: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return result and weights, (*, L, E_v) and (*, L, S).

        Args:
            query: (*, L, E).
            key: (*, S, E).
            value: (*, S, E_v).
            mask: true where attention may look, or what is added to the scores; or None.
            scale: of the scores, unless the module has its own.
            open_closed: a row in which nothing is left gives zero, instead of not a number.

        """
        if self.grouped:
            key, value = (
                each.repeat_interleave(query.size(-3) // each.size(-3), -3) for each in (key, value)
            )
        factor = query.size(-1) ** -0.5 if self.own_scale else scale
        masked = self.mask(self.scores(query * factor, key.transpose(-2, -1)), mask, open_closed)
        weights = self.close(self.softmax(masked[0]), masked[1])
        if self.dropout is not None:
            weights = self.dropout(weights)
        return self.mix(weights, value), weights


class AlwaysDropout(nn.Module):
    """Dropout as the function has it: whether a model trains is not asked."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements."""
        return F.dropout(input, self.p, training=True)


class ResultOnly(nn.Module):
    """Attention without its weights.

    Args:
        attention: whose result is returned.

    """

    def __init__(self, attention: DotProductAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: Any) -> Tensor:
        """Return the result."""
        result: Tensor = self.attention(query, key, value, mask, scale, True)[0]
        return result


class MultiheadAttentionAtoms(StandIn, nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` made of linear maps and atoms."""

    begin: AttentionBegin
    attention: DotProductAttention
    end: AttentionEnd

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the original returns for the same arguments."""
        begun = self.begin(query, key, value, key_padding_mask, attn_mask, need_weights, is_causal)
        q, k, v = (F.linear(begun[k], weight, bias) for k, (weight, bias) in enumerate(self._projections()))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.size(0), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.size(0), 1, -1)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([each, torch.zeros_like(each[:, :1])], 1) for each in (k, v))
        heads = (
            torch.unflatten(each, -1, (self.num_heads, self.head_dim)).transpose(1, 2) for each in (q, k, v)
        )
        mixed, weights = self.attention(*heads, begun[3], None, not need_weights)
        result = F.linear(mixed.transpose(1, 2).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        told = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        ended = self.end(result, told, begun[4])
        return ended[0], ended[1] if need_weights else None

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias for queries, keys and values."""
        own = self._parameters
        weights: list[Tensor] = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        if own["in_proj_weight"] is not None:
            packed = self.in_proj_weight.chunk(3)
            weights = [packed[0], packed[1], packed[2]]
        if own["in_proj_bias"] is None:
            return [(weight, None) for weight in weights]
        biases = self.in_proj_bias.chunk(3)
        return [(weight, biases[k]) for k, weight in enumerate(weights)]
