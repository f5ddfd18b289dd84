"""Functions and methods that are linear, in all that varies among their tensors or but for some arguments."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from passes.operations.contract import Build, Rule
from passes.operations.operation import NO_RULE, RANDOM, Kind, Operation, described, linear


def _but(signature: str, *aliases: str, fixed: str | tuple[str, ...], fresh: bool = True) -> Operation:
    """Describe what is linear unless some of its arguments vary."""
    names = (fixed,) if isinstance(fixed, str) else fixed
    return described(signature, Kind.LINEAR, *aliases, fixed=names, fresh=fresh)


def _as_another(name: str, **known: bool) -> Operation:
    """Describe what hands numbers on in the shape or the type of another tensor."""
    return described(f"{name}(input, other)", Kind.LINEAR, blind=True, reads=("input",), **known)


CALLS: tuple[Operation, ...] = (
    # Numbers that are computed, in memory of their own.
    *linear(
        *("add", "radd", "sub", "rsub", "subtract", "neg", "negative", "diff", "sum"),
        *("cumsum", "trace", "nansum", "nanmean", "deg2rad"),
        *("rad2deg", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"),
        *("row_stack", "block_diag", "combinations", "clone", "roll", "flip", "fliplr"),
        *("flipud", "rot90", "diag_embed", "diagflat", "tril", "triu", "repeat", "tile", "fold", "im2col"),
        *("col2im", "avg_pool1d", "avg_pool2d"),
        *("avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "complex"),
        *("fft.fft", "fft.ifft", "fft.rfft", "fft.irfft", "fft.fft2", "fft.ifft2", "fft.rfft2", "fft.irfft2"),
        *("fft.fftn", "fft.ifftn", "fft.rfftn", "fft.irfftn", "fft.hfft", "fft.ihfft", "fft.hfft2"),
        *("fft.ihfft2", "fft.hfftn", "fft.ihfftn", "fft.fftshift", "fft.ifftshift", "stft", "istft"),
        *("slice_scatter", "select_scatter", "diagonal_scatter"),
        *("unfold_copy", "alias_copy", "as_strided_copy", "expand_copy", "permute_copy", "slice_copy"),
        *("squeeze_copy", "t_copy", "transpose_copy", "unsqueeze_copy", "view_copy", "narrow_copy"),
        *("select_copy", "diagonal_copy", "unbind_copy", "split_copy", "split_with_sizes_copy"),
        *("lift_fresh_copy", "pad_sequence", "_chunk_cat", "overwritten"),
        fresh=True,
    ),
    *linear("mean", fresh=True, casts=True),
    # The same numbers in another shape or order, perhaps without a copy.
    *linear(
        *("chunk", "split", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split", "hsplit", "vsplit"),
        *("dsplit", "split_with_sizes", "meshgrid", "broadcast_tensors", "view", "reshape", "permute"),
        *("transpose", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "adjoint"),
        *("moveaxis", "movedim", "squeeze", "unsqueeze", "flatten", "unflatten", "ravel", "expand"),
        *(
            "broadcast_to",
            "contiguous",
            "alias",
            "select",
            "narrow",
            "slice",
            "diagonal",
            "diag",
        ),
        *(
            "linalg.diagonal",
            "atleast_1d",
            "atleast_2d",
            "atleast_3d",
            "unfold",
            "as_strided",
            "real",
            "imag",
        ),
        *("view_as_real", "view_as_complex", "conj", "resolve_conj", "resolve_neg", "cpu", "cuda"),
        *("requires_grad_", "retain_grad", "as_tensor", "resize", "resize_as", "set", "share_memory"),
        *("pos", "positive", "cartesian_prod", "pin_memory"),
        moves=True,
    ),
    # Likewise, in the shape of another tensor, whose numbers do not matter.
    *(_as_another(name, moves=True) for name in ("view_as", "reshape_as", "expand_as")),
    # Sums and orders, in memory of their own unless they change nothing, on some device.
    *linear("sum_to_size", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    # Numbers that are written, padded or interpolated, and containers of Python's that hold tensors.
    *linear(
        *("pad", "constant_pad_nd", "interpolate", "upsample", "upsample_nearest", "upsample_bilinear"),
        *("conj_physical", "cfloat", "cdouble", "chalf", "pad_packed_sequence", "_pad_packed_sequence"),
        *("pack_sequence", "unpack_sequence", "unpad_sequence", "rnn_pad", "copy", "augment", "zero", "fill"),
        *("iter", "tuple", "list", "values", "items", "get", "PackedSequence"),
    ),
    # Numbers of another type; where that is one of whole numbers, they are cut off.
    *linear("float", "double", "half", "bfloat16", "_to_copy", "type", casts=True),
    *(_as_another(name, casts=True) for name in ("to", "type_as")),
    # Linear but for a place, a mask or a weight.
    _but("getitem(input, index)", fixed="index", fresh=False),
    _but("index(input, indices)", fixed="indices"),
    _but("setitem(input, index, value)", "set_item", fixed="index", fresh=False),
    _but("with_item(input, index, value)", fixed="index"),
    _but("index_put(input, indices, values, accumulate=False)", fixed="indices"),
    _but("index_select(input, dim, index)", fixed="index"),
    _but("gather(input, dim, index)", fixed="index"),
    _but("take(input, index)", fixed="index"),
    _but("put(input, index, source, accumulate=False)", fixed="index"),
    _but("take_along_dim(input, indices, dim=None)", fixed="indices"),
    _but("masked_select(input, mask)", fixed="mask"),
    _but("masked_fill(input, mask, value)", fixed="mask"),
    _but("masked_scatter(input, mask, source)", fixed="mask"),
    described(
        "where(condition, input, other)",
        Kind.LINEAR,
        fixed=("condition",),
        method="input, condition, other",
        fresh=True,
    ),
    _but("scatter_add(input, dim, index, src)", fixed="index"),
    _but("index_add(input, dim, index, source, alpha=1)", fixed="index"),
    _but("index_copy(input, dim, index, source)", fixed="index"),
    _but("index_fill(input, dim, index, value)", fixed="index"),
    _but("repeat_interleave(input, repeats, dim=None)", fixed="repeats"),
    described(
        "embedding(input, weight, padding_idx=None, max_norm=None)",
        Kind.LINEAR,
        renamed={"indices": "input"},
        unless={"max_norm": NO_RULE},
        fresh=True,
    ),
    _but("pack_padded_sequence(input, lengths)", "_pack_padded_sequence", fixed="lengths"),
    # Linear in one of two modes.
    *(
        described(f"{name}(input, p=0.5, training=True)", Kind.LINEAR, unless={"training": RANDOM})
        for name in (
            *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
            "feature_dropout",
        )
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {}
#: Modules that are linear when they are evaluated.
LINEAR_MODULES: frozenset[type[nn.Module]] = frozenset({
    nn.Linear, nn.LazyLinear, nn.Identity, nn.Embedding, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold,
    nn.modules.linear.NonDynamicallyQuantizableLinear,
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
    nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle,
})  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
