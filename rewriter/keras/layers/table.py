"""The table of Keras' layers: what translates each, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rewriter.keras.installed import kind_of
from rewriter.keras.layers import attention, convolutions, dense, norms, shapes
from rewriter.keras.layers.contract import Translate, Translation, UnsupportedError
from rewriter.keras.recurrent.build import bidirectional, over_time, recurrent

_ONE_TO_THREE = ("1D", "2D", "3D")
#: By the layer's name.
LAYERS: Mapping[str, Translate] = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN"), recurrent),
    "Bidirectional": bidirectional,
    "TimeDistributed": lambda layer: over_time(layer, translation_of),
    "Dense": dense.dense,
    "EinsumDense": dense.einsum_dense,
    "Embedding": dense.embedding,
    "Masking": dense.masking,
    "Activation": dense.activation_layer,
    "ReLU": dense.relu,
    "LeakyReLU": dense.leaky_relu,
    "ELU": dense.elu,
    "PReLU": dense.prelu,
    "Softmax": dense.softmax,
    "Rescaling": dense.rescaling,
    "Normalization": dense.normalization,
    **dict.fromkeys(
        (
            *("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
            *("Identity", *(f"SpatialDropout{each}" for each in _ONE_TO_THREE)),
        ),
        dense.identity,
    ),
    **dict.fromkeys((f"Conv{each}" for each in _ONE_TO_THREE), convolutions.convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), convolutions.depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), convolutions.separable),
    **dict.fromkeys(
        (f"{kind}Pooling{each}" for kind in ("Max", "Average") for each in _ONE_TO_THREE),
        convolutions.pooling,
    ),
    **dict.fromkeys(
        (f"Global{kind}Pooling{each}" for kind in ("Max", "Average") for each in _ONE_TO_THREE),
        convolutions.global_pooling,
    ),
    **dict.fromkeys(
        (f"{kind}{each}" for kind in ("ZeroPadding", "Cropping") for each in _ONE_TO_THREE),
        convolutions.zero_padding,
    ),
    **dict.fromkeys((f"UpSampling{each}" for each in _ONE_TO_THREE), convolutions.upsampling),
    "BatchNormalization": norms.batch,
    "LayerNormalization": norms.layer_norm,
    "RMSNormalization": norms.rms_norm,
    "GroupNormalization": norms.group_norm,
    "MultiHeadAttention": attention.multi_head,
    "Attention": attention.attention,
    "AdditiveAttention": attention.attention,
    "Flatten": shapes.flatten,
    "Reshape": shapes.reshape,
    "Permute": shapes.permute,
    "RepeatVector": shapes.repeat_vector,
    "Concatenate": shapes.concatenate,
    "Add": shapes.merging(torch.add),
    "Subtract": shapes.merging(torch.subtract),
    "Multiply": shapes.merging(torch.multiply),
    "Average": shapes.merging(torch.add, mean=True),
    "Maximum": shapes.merging(torch.maximum),
    "Minimum": shapes.merging(torch.minimum),
    "Dot": shapes.dot,
}


def translation_of(layer: Any, kept: frozenset[type] = frozenset()) -> Translation:
    """Translate one layer.

    Args:
        layer: of Keras.
        kept: types for which something else is built.

    Raises:
        UnsupportedError: saying why it cannot be.

    """
    kind = kind_of(layer)
    if type(layer) in kept:
        raise UnsupportedError("something else is built for it")
    if kind is None or kind not in LAYERS:
        what = "a layer that Keras has, but that" if kind else "a class of the user's, which"
        raise UnsupportedError(f"{type(layer).__name__} is {what} is not known here")
    if not layer.built:
        raise UnsupportedError("it has no weights yet: call it, or the model, once")
    dense.unsupported_if_half(layer)
    return LAYERS[kind](layer)
