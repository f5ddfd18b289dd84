"""Torch's transformer as its paper has it: without the kernel that computes a whole layer at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from passes.errors import InputError
from passes.leaves import Atom, Layout
from passes.operations.attention.layout import additive
from passes.stand_in import StandIn


class AdditiveMask(Layout):
    """Turn a boolean mask, true where it blocks, into one that is added; layers of one's own expect it.

    Example:
        >>> import torch
        >>> AdditiveMask()(torch.tensor([True, False]), torch.zeros(1))
        tensor([-inf, 0.])

    """

    def forward(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the mask in the dtype of ``like``."""
        return None if mask is None else additive(mask, like)


class SameBatch(Layout):
    """Refuse a source and a target that do not belong together.

    Args:
        d_model: features of both.
        batch_first: whether the batch is the first dimension rather than the second.

    """

    def __init__(self, d_model: int, *, batch_first: bool) -> None:
        super().__init__()
        self.d_model = d_model
        self.batch = 0 if batch_first else 1

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as they are.

        Raises:
            InputError: for another batch, or other features.

        """
        together = source.dim() != 3 or source.size(self.batch) == target.size(self.batch)
        if not together or {source.size(-1), target.size(-1)} != {self.d_model}:
            raise InputError(
                f"{self.name or 'Transformer'}: expected source and target of one batch (dimension "
                f"{self.batch}) with {self.d_model} features, got shapes {tuple(source.shape)} and "
                f"{tuple(target.shape)}"
            )
        return source, target


class TransformerBlock(StandIn):
    """What encoder and decoder layers share."""

    activation: Callable[[Tensor], Tensor]
    activation_atom: Atom | None
    linear1: nn.Linear
    linear2: nn.Linear
    dropout: nn.Dropout

    def _feed_forward(self, x: Tensor) -> Tensor:
        activation = self.activation_atom or self.activation
        result: Tensor = self.linear2(self.dropout(activation(self.linear1(x))))
        return result


def _seen(
    attention: nn.Module,
    x: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
) -> Tensor:
    """Return what ``x`` sees of ``memory``."""
    options = {"attn_mask": mask, "key_padding_mask": padding, "is_causal": is_causal}
    seen: Tensor = attention(x, memory, memory, need_weights=False, **options)[0]
    return seen


class TransformerEncoderLayerAtoms(TransformerBlock, nn.TransformerEncoderLayer):
    """An ``nn.TransformerEncoderLayer`` written out."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return what the original returns for the same arguments."""

        def look(x: Tensor) -> Tensor:
            seen = _seen(self.self_attn, x, x, src_mask, src_key_padding_mask, is_causal)
            result: Tensor = self.dropout1(seen)
            return result

        x: Tensor = src
        if self.norm_first:
            x = x + look(self.norm1(x))
            x = x + self.dropout2(self._feed_forward(self.norm2(x)))
        else:
            x = self.norm1(x + look(x))
            x = self.norm2(x + self.dropout2(self._feed_forward(x)))
        return x


class TransformerDecoderLayerAtoms(TransformerBlock, nn.TransformerDecoderLayer):
    """An ``nn.TransformerDecoderLayer`` written out."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return what the original returns for the same arguments."""

        def look(x: Tensor) -> Tensor:
            seen = _seen(self.self_attn, x, x, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
            result: Tensor = self.dropout1(seen)
            return result

        def remember(x: Tensor) -> Tensor:
            seen = _seen(
                self.multihead_attn, x, memory, memory_mask, memory_key_padding_mask, memory_is_causal
            )
            result: Tensor = self.dropout2(seen)
            return result

        x: Tensor = tgt
        if self.norm_first:
            x = x + look(self.norm1(x))
            x = x + remember(self.norm2(x))
            x = x + self.dropout3(self._feed_forward(self.norm3(x)))
        else:
            x = self.norm1(x + look(x))
            x = self.norm2(x + remember(x))
            x = self.norm3(x + self.dropout3(self._feed_forward(x)))
        return x


class TransformerEncoderAtoms(StandIn, nn.TransformerEncoder):
    """An ``nn.TransformerEncoder`` without nested tensors: positions that are padded keep their values."""

    additive_mask: AdditiveMask

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return what the original returns for the same arguments, off its fast path."""
        # Masks reach the layers as numbers, as torch's encoder has it.
        if mask is not None:
            mask = self.additive_mask(mask, src)
        if src_key_padding_mask is not None:
            src_key_padding_mask = self.additive_mask(src_key_padding_mask, src)
        for layer in self.layers:
            src = layer(
                src,
                src_mask=mask,
                is_causal=_hint(is_causal),
                src_key_padding_mask=src_key_padding_mask,
            )
        return src if self.norm is None else self.norm(src)


class TransformerDecoderAtoms(StandIn, nn.TransformerDecoder):
    """An ``nn.TransformerDecoder`` that does not look for causal masks."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return what the original returns for the same arguments."""
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=_hint(tgt_is_causal),
                memory_is_causal=memory_is_causal,
            )
        return tgt if self.norm is None else self.norm(tgt)


class TransformerAtoms(StandIn, nn.Transformer):
    """An ``nn.Transformer`` whose checks do not stand in the way of a graph."""

    same_batch: SameBatch

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return what the original returns for the same arguments."""
        checked = self.same_batch(src, tgt)
        memory = self.encoder(
            checked[0], mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        result: Tensor = self.decoder(
            checked[1],
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
        return result


def _hint(is_causal: bool | None) -> bool:
    """None asks torch to look whether the mask is causal, which changes its speed, not the result."""
    return False if is_causal is None else is_causal
