"""Calls and modules of attention, and torch's transformer layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from passes.leaves import Atom
from passes.operations.attention.dot_product import (
    AlwaysDropout,
    DotProductAttention,
    MultiheadAttentionAtoms,
    ResultOnly,
)
from passes.operations.attention.function import lower_multihead
from passes.operations.attention.layout import AttentionBegin, AttentionEnd
from passes.operations.attention.transformer import (
    AdditiveMask,
    SameBatch,
    TransformerAtoms,
    TransformerBlock,
    TransformerDecoderAtoms,
    TransformerDecoderLayerAtoms,
    TransformerEncoderAtoms,
    TransformerEncoderLayerAtoms,
)
from passes.operations.contract import Build, Rule, Textbook, Varies, holds_nodes
from passes.operations.elementwise.lowering import atom_of
from passes.operations.elementwise.records import FUNCTIONS
from passes.operations.names import key_of
from passes.operations.operation import Operation, nonlinear
from passes.stand_in import put_on_face

_ACTIVATIONS: Mapping[str, str] = {key: each.name for each in FUNCTIONS for key in each.keys()}  # noqa: SIM118


def _scaled_dot_product_attention(
    varies: Varies,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Textbook | None:
    if holds_nodes(dropout_p, is_causal, enable_gqa):
        return None
    dropout = AlwaysDropout(dropout_p) if dropout_p else None
    attention = DotProductAttention(dropout, causal=is_causal, grouped=enable_gqa, own_scale=scale is None)
    return ResultOnly(attention), (query, key, value, attn_mask, scale)


def _multihead(layer: nn.MultiheadAttention) -> nn.Module:
    stand_in = put_on_face(MultiheadAttentionAtoms, layer, set(), "")
    extra = (layer.bias_k is not None) + layer.add_zero_attn
    sizes = layer.embed_dim, layer.kdim, layer.vdim
    stand_in.begin = AttentionBegin(layer.num_heads, batch_first=layer.batch_first, extra=extra, sizes=sizes)
    stand_in.attention = DotProductAttention(nn.Dropout(layer.dropout))
    stand_in.end = AttentionEnd(batch_first=layer.batch_first)
    return stand_in


def _block(cls: type[TransformerBlock]) -> Build:
    def build(layer: Any) -> nn.Module:
        stand_in = put_on_face(cls, layer, set(), "")
        # Where the layer stays code that runs, no pass sees the call of a function.
        stand_in.activation_atom = _activation_atom(layer.activation)
        return stand_in

    return build


def _activation_atom(activation: Any) -> Atom | None:
    name = None if isinstance(activation, nn.Module) else key_of(activation)
    return atom_of(_ACTIVATIONS[name]) if name is not None and name in _ACTIVATIONS else None


def _encoder(encoder: nn.TransformerEncoder) -> nn.Module:
    stand_in = put_on_face(TransformerEncoderAtoms, encoder, set(), "")
    stand_in.additive_mask = AdditiveMask()
    return stand_in


def _decoder(decoder: nn.TransformerDecoder) -> nn.Module:
    return put_on_face(TransformerDecoderAtoms, decoder, set(), "")


def _transformer(model: nn.Transformer) -> nn.Module:
    stand_in = put_on_face(TransformerAtoms, model, set(), "")
    stand_in.same_batch = SameBatch(model.d_model, batch_first=model.batch_first)
    return stand_in


CALLS: tuple[Operation, ...] = (
    nonlinear(
        "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *,"
        " scale=None, enable_gqa=False)",
        lower=_scaled_dot_product_attention,
    ),
    nonlinear(
        "multi_head_attention_forward(query, key, value, embed_dim_to_check, num_heads, in_proj_weight,"
        " in_proj_bias, bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias,"
        " training=True, key_padding_mask=None, need_weights=True, attn_mask=None,"
        " use_separate_proj_weight=False, q_proj_weight=None, k_proj_weight=None, v_proj_weight=None,"
        " static_k=None, static_v=None, average_attn_weights=True, is_causal=False)",
        lower=lower_multihead,
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {
    nn.MultiheadAttention: _multihead,
    nn.TransformerEncoderLayer: _block(TransformerEncoderLayerAtoms),
    nn.TransformerDecoderLayer: _block(TransformerDecoderLayerAtoms),
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
}
# All of it is made of other families.
RULES: Mapping[type[nn.Module], Rule] = {}
