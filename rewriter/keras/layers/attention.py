"""Attention: Keras' layers as linear maps, matrix products and a softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rewriter.keras.layers.contract import Translation, UnsupportedError
from rewriter.keras.layers.dense import scale_of
from rewriter.keras.weights import linear, parameter

# What Keras adds to scores that do not count, and what it takes for them in its products of heads.
_NOT_COUNTED = -1e9


class HeadsAttention(nn.Module):
    """Keras' ``MultiHeadAttention`` over the sequence.

    Args:
        maps: Linears of query, key and value, (B, T, heads · size), and of the result.
        heads: their number.
        scale: of the scores.

    """

    def __init__(
        self, maps: tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear], heads: int, scale: float
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = maps
        self.heads = heads
        self.scale = scale

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """Return (B, T, D), with the shares (B, heads, T, S) if they are asked for; arguments are Keras'."""
        q = self._split(self.query(query))
        k = self._split(self.key(value if key is None else key))
        v = self._split(self.value(value))
        scores = (q @ k.transpose(-1, -2)) * self.scale
        masks = [
            None if query_mask is None else query_mask[:, None, :, None],
            None if value_mask is None else value_mask[:, None, None, :],
            None if key_mask is None else key_mask[:, None, None, :],
            None if attention_mask is None else self._over_heads(attention_mask),
        ]
        if use_causal_mask:
            masks.append(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril())
        for mask in masks:
            if mask is not None:
                scores = torch.where(mask, scores, _NOT_COUNTED)
        shares = nn.functional.softmax(scores, -1)
        out = self.output((shares @ v).transpose(1, 2).flatten(2))
        return (out, shares) if return_attention_scores else out

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def _over_heads(mask: Tensor) -> Tensor:
        return (mask if mask.dtype == torch.bool else mask != 0).unsqueeze(1)


def multi_head(layer: Any) -> Translation:
    """Translate a ``MultiHeadAttention`` over one axis."""
    if len(layer._attention_axes or (1,)) != 1 or getattr(layer, "_use_gate", False):
        raise UnsupportedError("it attends over several axes, or has a gate")
    maps = [
        linear(part.kernel, part.bias, lambda kernel: kernel.flatten(1).t())
        for part in (layer._query_dense, layer._key_dense, layer._value_dense)
    ]
    output = layer._output_dense
    maps.append(linear(output.kernel, output.bias, lambda kernel: kernel.flatten(0, 1).t()))
    module = HeadsAttention(tuple(maps), layer._num_heads, scale_of(layer._key_dim))  # type: ignore[arg-type]
    masks = (("query", "query_mask"), ("value", "value_mask"), ("key", "key_mask"))
    return Translation(module, masks)


class DotAttention(nn.Module):
    """Keras' ``Attention`` and ``AdditiveAttention``.

    Args:
        scale: of the scores, or of each feature, or None.
        additive: scores are sums of tanh of query and key, not products.

    """

    def __init__(self, scale: nn.Parameter | None, *, additive: bool) -> None:
        super().__init__()
        self.scale = scale
        self.additive = additive

    def forward(
        self,
        inputs: Any,
        mask: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        """Return (B, T, D); inputs are query, value and, maybe, key."""
        query, value = inputs[0], inputs[1]
        key = inputs[2] if len(inputs) > 2 else value
        if self.additive:
            each = torch.tanh(query.unsqueeze(-2) + key.unsqueeze(-3))
            scores = (each if self.scale is None else self.scale * each).sum(-1)
        else:
            scores = query @ key.transpose(-1, -2)
            if self.scale is not None:
                scores = scores * self.scale
        if mask is not None and len(mask) > 1 and mask[1] is not None:
            scores = torch.where(mask[1].unsqueeze(-2), scores, _NOT_COUNTED)
        if use_causal_mask:
            counts = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).tril()
            scores = torch.where(counts, scores, _NOT_COUNTED)
        shares = nn.functional.softmax(scores, -1)
        out = shares @ value
        if mask is not None and mask[0] is not None:
            out = torch.where(mask[0].unsqueeze(-1), out, 0.0)
        return (out, shares) if return_attention_scores else out


def attention(layer: Any) -> Translation:
    """Translate an ``Attention`` or ``AdditiveAttention``."""
    additive = type(layer).__name__ == "AdditiveAttention"
    if not additive and layer.score_mode != "dot":
        raise UnsupportedError(f"its score_mode is {layer.score_mode!r}, expected 'dot'")
    scale = getattr(layer, "scale", None)
    module = DotAttention(None if scale is None else parameter(scale), additive=additive)
    return Translation(module, (("*", "mask"),))
