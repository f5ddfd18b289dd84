"""``F.multi_head_attention_forward``, of which each weight is an operand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.operations.attention.dot_product import AlwaysDropout, DotProductAttention
from passes.operations.attention.layout import AttentionBegin, AttentionEnd
from passes.operations.contract import Textbook, Varies, holds_nodes

_OPERANDS = (
    *("query", "key", "value", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("out_proj_weight", "out_proj_bias", "key_padding_mask", "attn_mask"),
    *("q_proj_weight", "k_proj_weight", "v_proj_weight"),
)


class MultiheadFunction(nn.Module):
    """Attention of several heads, made of linear maps and atoms.

    Args:
        heads: number of heads.
        extra: positions that are appended to keys and values.
        zero: whether one of them is of zeros.
        separate: whether queries, keys and values have weights of their own.
        dropout: of the weights of attention.
        need_weights: whether they are returned.
        average: whether as the mean over heads.
        causal: a hint about the mask.

    """

    def __init__(
        self,
        heads: int,
        *,
        extra: int = 0,
        zero: bool = False,
        separate: bool = False,
        dropout: float = 0.0,
        need_weights: bool = True,
        average: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.zero = zero
        self.separate = separate
        self.need_weights = need_weights
        self.average = average
        self.causal = causal
        self.begin = AttentionBegin(heads, batch_first=False, extra=extra)
        self.attention = DotProductAttention(AlwaysDropout(dropout) if dropout else None)
        self.end = AttentionEnd(batch_first=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        in_proj_weight: Any,
        in_proj_bias: Any,
        bias_k: Any,
        bias_v: Any,
        out_proj_weight: Any,
        out_proj_bias: Any,
        key_padding_mask: Any,
        attn_mask: Any,
        q_proj_weight: Any,
        k_proj_weight: Any,
        v_proj_weight: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the function returns: the result, and weights or None."""
        begun = self.begin(query, key, value, key_padding_mask, attn_mask, self.need_weights, self.causal)
        weights = [q_proj_weight, k_proj_weight, v_proj_weight]
        if not self.separate:
            weights = list(torch.chunk(in_proj_weight, 3))
        biases = [None] * 3 if in_proj_bias is None else list(torch.chunk(in_proj_bias, 3))
        q, k, v = (F.linear(begun[n], weights[n], biases[n]) for n in range(3))
        if bias_k is not None:
            k, v = (
                torch.cat([each, bias.expand(each.size(0), 1, -1)], 1)
                for each, bias in ((k, bias_k), (v, bias_v))
            )
        if self.zero:
            k, v = (torch.cat([each, torch.zeros_like(each[:, :1])], 1) for each in (k, v))
        heads = (torch.unflatten(each, -1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        mixed, found = self.attention(*heads, begun[3], None, not self.need_weights)
        result = F.linear(mixed.transpose(1, 2).flatten(-2), out_proj_weight, out_proj_bias)
        told = (found.mean(1) if self.average else found) if self.need_weights else None
        ended = self.end(result, told, begun[4])
        return ended[0], ended[1] if self.need_weights else None


def lower_multihead(
    varies: Varies,
    /,
    num_heads: Any,
    add_zero_attn: Any = False,
    dropout_p: Any = 0.0,
    training: Any = True,
    need_weights: Any = True,
    use_separate_proj_weight: Any = False,
    average_attn_weights: Any = True,
    is_causal: Any = False,
    **operands: Any,
) -> Textbook | None:
    """Lower ``F.multi_head_attention_forward``, unless keys or values are given as they are to be used."""
    given = {"embed_dim_to_check": None, "static_k": None, "static_v": None}
    options = (num_heads, add_zero_attn, dropout_p, training, need_weights, is_causal)
    if holds_nodes(*options) or varies((operands.get("key_padding_mask"), operands.get("attn_mask"))):
        return None
    known = {name: each for name, each in operands.items() if name not in given}
    if operands.get("static_k") is not None or operands.get("static_v") is not None:
        return None
    attention = MultiheadFunction(
        num_heads,
        extra=(known.get("bias_k") is not None) + bool(add_zero_attn),
        zero=bool(add_zero_attn),
        separate=bool(use_separate_proj_weight),
        dropout=dropout_p if training else 0.0,
        need_weights=bool(need_weights),
        average=bool(average_attn_weights),
        causal=bool(is_causal),
    )
    return attention, tuple(known.get(name) for name in _OPERANDS)
