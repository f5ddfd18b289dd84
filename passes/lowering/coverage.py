"""Which calls are linear in what varies, hence need no rule, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from passes.operations.names import name_of_call
from passes.user_code.hooks import has_hooks

NO_RULE = "has no rule"
FIXED = "a mask, index or number that depends on the input"
CUTS = "cuts the gradient"
RANDOM = "draws random numbers"
ROWS = "mixes rows of the batch (batch statistics)"
PRODUCT = "a product of operands that depend on the input"
DIVISOR = "divides by what depends on the input"

#: Says something about an argument, or what is in it.
Says = Callable[[Any], bool]

# Linear in all that varies among their operands together, whatever the other arguments are.
_LINEAR = {
    *("add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg", "negative", "pos", "positive", "diff"),
    *("sum", "mean", "cumsum", "trace", "cumulative_trapezoid", "trapezoid", "trapz", "nansum", "nanmean"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack"),
    *("chunk", "split", "unbind", "tensor_split", "unsafe_chunk", "unsafe_split", "hsplit", "vsplit", "iter"),
    *("split_with_sizes", "block_diag", "meshgrid", "broadcast_tensors", "combinations", "tuple", "list"),
    *("view", "view_as", "reshape", "reshape_as", "permute", "transpose", "swapaxes", "swapdims", "t", "T"),
    *("mT", "H", "mH", "adjoint", "moveaxis", "movedim", "squeeze", "unsqueeze", "flatten", "unflatten"),
    *("ravel", "expand", "expand_as", "repeat", "tile", "broadcast_to", "contiguous", "clone", "alias"),
    *("select", "narrow", "slice", "roll", "flip", "fliplr", "flipud", "rot90", "atleast_1d", "atleast_2d"),
    *("diagonal", "diag", "diag_embed", "diagflat", "tril", "triu", "pad", "constant_pad_nd", "atleast_3d"),
    *("float", "double", "half", "bfloat16", "to", "type_as", "cpu", "cuda", "unfold", "fold", "as_strided"),
    *("interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "unfold_copy"),
    *("adaptive_avg_pool3d", "real", "imag", "view_as_real", "view_as_complex", "conj", "resolve_conj"),
    *("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2"),
    *("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfft", "fft_ihfft", "fft_fftshift"),
    *("fft_ifftshift", "slice_scatter", "select_scatter", "diagonal_scatter", "complex", "rnn_pad", "copy"),
    *("pad_sequence", "pad_packed_sequence", "_pad_packed_sequence", "pack_sequence", "requires_grad"),
    *("embedding", "stft", "istft", "lift_fresh_copy", "as_tensor", "values", "items", "retain_grad"),
    *( "PackedSequence", "unpack_sequence", "unpad_sequence", "get"),
    *("augment", "overwritten", "zero", "fill"),
}  # fmt: skip
# Linear, if the argument at this place (or of this name) does not vary.
_FIXED_PLACES: Mapping[str, tuple[tuple[int, str], ...]] = {
    "getitem": ((1, ""),), "index": ((1, "indices"),), "setitem": ((1, ""),), "index_put": ((1, "indices"),),
    "index_select": ((2, "index"),), "gather": ((2, "index"),), "take": ((1, "index"),),
    "take_along_dim": ((1, "indices"),), "masked_select": ((1, "mask"),), "masked_fill": ((1, "mask"),),
    "masked_scatter": ((1, "mask"),), "where": ((0, "condition"),), "scatter": ((2, "index"),),
    "scatter_add": ((2, "index"),), "index_add": ((2, "index"),), "index_copy": ((2, "index"),),
    "index_fill": ((2, "index"),), "repeat_interleave": ((1, "repeats"),), "lerp": ((2, "weight"),),
    "pack_padded_sequence": ((1, "lengths"),), "_pack_padded_sequence": ((1, "lengths"),),
    "with_item": ((1, "index"),), "set_item": ((1, "index"),),
    "grid_sample": ((1, "grid"),), "grid_sampler": ((1, "grid"),),
}  # fmt: skip
# Linear in each of their operands: of those at these places (all, if empty) one at most may vary.
_PRODUCTS: Mapping[str, tuple[tuple[int, str], ...]] = {
    **dict.fromkeys(
        ("mul", "rmul", "imul", "multiply", "matmul", "rmatmul", "imatmul", "bmm", "mm", "mv", "dot", "inner",
         "outer", "ger", "vdot", "vecdot", "linalg_vecdot", "linalg_matmul", "einsum", "tensordot", "kron",
         "cross", "linalg_cross", "chain_matmul", "linalg_multi_dot"),
        (),
    ),
    **dict.fromkeys(
        ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
         "convolution", "conv_tbc"),
        ((0, "input"), (1, "weight")),
    ),
    "bilinear": ((0, "input1"), (1, "input2"), (2, "weight")),
    "addmm": ((1, "mat1"), (2, "mat2")), "addmv": ((1, "mat"), (2, "vec")),
    "addr": ((1, "vec1"), (2, "vec2")),
    "addbmm": ((1, "batch1"), (2, "batch2")), "baddbmm": ((1, "batch1"), (2, "batch2")),
    "addcmul": ((1, "tensor1"), (2, "tensor2")),
}  # fmt: skip
_DIVISIONS = {"div", "truediv", "itruediv", "idiv", "divide", "true_divide"}
_CUTS = {"detach", "data", "numpy", "item", "tolist", "bool", "float_", "int", "index_", "complex_", "array"}
_RANDOM = {
    *("bernoulli", "normal", "multinomial", "rand", "randn", "randint", "randperm", "rand_like"),
    *("randint_like", "uniform", "exponential", "gumbel_softmax", "poisson", "cauchy", "log_normal"),
    *("geometric", "random", "randn_like"),
}  # fmt: skip
_DROPOUTS = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    "feature_dropout",
}  # fmt: skip
_NUMBERS = {"__float__": "float_", "__int__": "int", "__index__": "index_", "__complex__": "complex_"}

_LINEAR_MODULES: set[type[nn.Module]] = {
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
}  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def why_no_rule_for_module(module: nn.Module) -> str | None:
    """Return why a module is not linear when it is evaluated, or None if it is.

    Example:
        >>> why_no_rule_for_module(nn.Linear(1, 1)), why_no_rule_for_module(nn.Softmax(-1))
        (None, 'has no rule')
        >>> why_no_rule_for_module(nn.BatchNorm1d(1, track_running_stats=False))
        'mixes rows of the batch (batch statistics)'

    """
    kind = type(module)
    if has_hooks(module):
        return "has hooks, which may change what it returns"
    if kind in _BATCH_NORMS:
        return ROWS if module.running_mean is None else None
    if kind in _LINEAR_MODULES or (kind in _INSTANCE_NORMS and module.track_running_stats):
        return None
    base = next((each for each in kind.__mro__ if each.__module__.startswith("torch.nn.")), nn.Module)
    if base not in (kind, nn.Module) and not kind.__module__.startswith("passes."):
        return f"{NO_RULE}: a subclass of {base.__name__} may compute anything"
    return NO_RULE


def why_no_rule_for_call(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], varies: Says, steps: Says
) -> str | None:
    """Return why a call is not linear in the tensors that vary, or None if it is.

    Args:
        function: a function of torch's or Python's, or the name of a method.
        args: positional arguments, with the object of a method first.
        kwargs: keyword arguments.
        varies: whether an argument is, or holds, a tensor that varies with the inputs.
        steps: whether it is, or holds, a mask, index or number that is read off such tensors.

    Example:
        >>> import torch
        >>> def varies(argument): return argument == "x"
        >>> def steps(argument): return argument == "mask"
        >>> why_no_rule_for_call(torch.mul, ("x", 2.0), {}, varies, steps)
        >>> why_no_rule_for_call(torch.mul, ("x", "x"), {}, varies, steps)
        'a product of operands that depend on the input'
        >>> why_no_rule_for_call("masked_fill", ("x", "mask", 0.0), {}, varies, steps)
        'a mask, index or number that depends on the input'

    """
    name = function if isinstance(function, str) else _name_of(function)
    if _builds(function):
        return None
    if name is None:
        return f"{NO_RULE}: a function of the model's own"
    if not isinstance(function, str) and name == "getattr":
        name = str(args[1])
        if not hasattr(Tensor, name):
            # A field of an object that holds tensors.
            return None
    name = _plain(name)
    if name in _RANDOM:
        return RANDOM
    if name in _DROPOUTS:
        # Where it is not said, a function of torch.nn.functional is in training.
        return None if _argument(args, kwargs, (2, "training"), "train") is False else RANDOM
    if name in _CUTS:
        return CUTS
    if name == "batch_norm":
        training = _argument(args, kwargs, (5, "training"))
        return ROWS if training is True else None
    places = [*args, *kwargs.values()]
    if name in _DIVISIONS:
        if _argument(args, kwargs, (2, "rounding_mode")) is not None:
            return NO_RULE
        return _fixed(varies, steps, _argument(args, kwargs, (1, "other")), DIVISOR)
    if name in _PRODUCTS:
        operands = [_argument(args, kwargs, place) for place in _PRODUCTS[name]] or _flat(places)
        if any(map(steps, operands)):
            return FIXED
        return PRODUCT if sum(map(varies, operands)) > 1 else None
    if name in _FIXED_PLACES:
        where = (1, "condition") if name == "where" and function == "where" else None
        for place in (where,) if where else _FIXED_PLACES[name]:
            reason = _fixed(varies, steps, _argument(args, kwargs, place), FIXED)
            if reason:
                return reason
        return FIXED if any(map(steps, places)) else None
    if name in _LINEAR:
        return FIXED if any(map(steps, places)) else None
    return NO_RULE


def _name_of(function: Any) -> str | None:
    """Return the name by which the tables know a function, None if it is not torch's or Python's."""
    schema = getattr(function, "_schema", None)
    if schema is not None:
        return str(schema.name).partition("::")[2] if str(schema.name).startswith("aten::") else None
    own = isinstance(function, FunctionType | MethodType)
    if own and not str(function.__module__).startswith(("torch", "passes.")):
        return None
    name = getattr(function, "__name__", "")
    return _NUMBERS.get(name) or name_of_call(function)


def _builds(function: Any) -> bool:
    """Whether a function puts its arguments into an object."""
    return isinstance(function, type) and (
        issubclass(function, tuple | list | dict) or is_dataclass(function)
    )


def _plain(name: str) -> str:
    """Drop what marks an in-place form."""
    if name in ("float_", "index_", "complex_"):
        return name
    return name.strip("_") if name.startswith("__") else name.rstrip("_")


def _fixed(varies: Says, steps: Says, argument: Any, reason: str) -> str | None:
    if steps(argument):
        return FIXED
    return reason if varies(argument) else None


def _flat(arguments: Any) -> list[Any]:
    return [
        each for part in arguments for each in (_flat(part) if isinstance(part, list | tuple) else [part])
    ]


def _argument(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], place: tuple[int, str], other: str = ""
) -> Any:
    k, name = place
    return args[k] if len(args) > k else kwargs.get(name, kwargs.get(other))
