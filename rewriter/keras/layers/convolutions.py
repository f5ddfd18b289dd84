"""Convolutions and pooling, channels first or last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewriter.keras.layers.contract import Translation, UnsupportedError, drops
from rewriter.keras.layers.dense import activated
from rewriter.keras.weights import optional, parameter

_CONVOLUTIONS: Sequence[type[nn.Module]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_MAXIMA: Sequence[type[nn.Module]] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_MEANS: Sequence[type[nn.Module]] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class ChannelsFirst(nn.Module):
    """Runs a module that wants the channels in dimension 1 on (B, ..., C), after it is padded.

    Args:
        module: takes (B, C, ...).
        padding: numbers of zeros, as ``torch.nn.functional.pad`` takes them; empty for none.
        last: the channels are in the last dimension of the input and the output.

    Example:
        >>> ChannelsFirst(nn.Conv1d(3, 2, 1), (1, 0), last=True)(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 6, 2])

    """

    def __init__(self, module: nn.Module, padding: Sequence[int] = (), *, last: bool) -> None:
        super().__init__()
        self.module = module
        self.padding = list(padding)
        self.last = last

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the module returns, in the layout of the input."""
        x = inputs.movedim(-1, 1) if self.last else inputs
        if any(self.padding):
            x = nn.functional.pad(x, self.padding)
        out: Tensor = self.module(x)
        return out.movedim(1, -1) if self.last else out


def convolution(layer: Any) -> Translation:
    """Translate a ``Conv1D``, ``Conv2D`` or ``Conv3D``."""
    rank, kernel = layer.rank, layer.kernel
    size, dilation, stride = layer.kernel_size, layer.dilation_rate, layer.strides
    weight = parameter(kernel, lambda k: k.movedim(-1, 0).movedim(-1, 1))
    module = _with(weight, layer.bias, rank, stride, dilation, layer.groups)
    padding = _padding(layer, size, stride, dilation)
    return _in_layout(layer, module, padding)


def depthwise(layer: Any) -> Translation:
    """Translate a ``DepthwiseConv1D`` or ``DepthwiseConv2D``."""
    rank = layer.rank
    channels = layer.kernel.shape[-2]
    weight = parameter(layer.kernel, lambda k: k.flatten(-2).movedim(-1, 0).unsqueeze(1))
    module = _with(weight, layer.bias, rank, layer.strides, layer.dilation_rate, channels)
    padding = _padding(layer, layer.kernel_size, layer.strides, layer.dilation_rate)
    return _in_layout(layer, module, padding)


def separable(layer: Any) -> Translation:
    """Translate a ``SeparableConv1D`` or ``SeparableConv2D``."""
    rank, kernel = layer.rank, layer.depthwise_kernel
    weight = parameter(kernel, lambda k: k.flatten(-2).movedim(-1, 0).unsqueeze(1))
    point = parameter(layer.pointwise_kernel, lambda k: k.movedim(-1, 0).movedim(-1, 1))
    ones = (1,) * rank
    module = nn.Sequential(
        _with(weight, None, rank, layer.strides, layer.dilation_rate, kernel.shape[-2]),
        _with(point, layer.bias, rank, ones, ones, 1),
    )
    return _in_layout(layer, module, _padding(layer, layer.kernel_size, layer.strides, layer.dilation_rate))


def _with(weight: nn.Parameter, bias: Any, rank: int, stride: Any, dilation: Any, groups: int) -> nn.Module:
    out, own = weight.shape[0], weight.shape[1]
    made: Any = _CONVOLUTIONS[rank - 1]
    module: nn.Module = made(
        own * groups,
        out,
        tuple(weight.shape[2:]),
        stride=tuple(stride),
        dilation=tuple(dilation),
        groups=groups,
        bias=False,
        device="meta",
    )
    module.weight = weight
    module.register_parameter("bias", optional(bias))
    return module


def _in_layout(layer: Any, module: nn.Module, padding: Sequence[int]) -> Translation:
    last = layer.data_format == "channels_last"
    return drops(activated(ChannelsFirst(module, padding, last=last), "convolution", layer.activation))


def _padding(layer: Any, size: Any, stride: Any, dilation: Any) -> list[int]:
    """Return the zeros that Keras puts around the input, the last dimension first."""
    if layer.padding == "valid":
        return []
    found: list[int] = []
    lengths = _lengths(layer)
    for k in range(len(size)):
        reach = dilation[k] * (size[k] - 1)
        if layer.padding == "causal":
            found = [reach, 0, *found]
            continue
        total = reach if stride[k] == 1 else _same(lengths[k], size[k], stride[k], dilation[k])
        found = [total // 2, total - total // 2, *found]
    return found


def _same(length: int | None, size: int, stride: int, dilation: int) -> int:
    if length is None:
        raise UnsupportedError(
            "its padding, 'same' with strides, depends on the length of the input, which the model does not "
            "fix; give the Input a shape without None"
        )
    return max((-(-length // stride) - 1) * stride + dilation * (size - 1) + 1 - length, 0)


def _lengths(layer: Any) -> Sequence[int | None]:
    shape = (layer.get_build_config() or {}).get("input_shape")
    if shape is None and layer._inbound_nodes:
        shape = layer._inbound_nodes[-1].arguments.keras_tensors[0].shape
    shape = shape or (None,) * 5
    return shape[1:-1] if layer.data_format == "channels_last" else shape[2:]


def pooling(layer: Any) -> Translation:
    """Translate ``MaxPooling`` and ``AveragePooling`` in one to three dimensions."""
    kinds: Any = _MAXIMA if "Max" in type(layer).__name__ else _MEANS
    size, stride = tuple(layer.pool_size), tuple(layer.strides)
    around = (0,) * len(size)
    if layer.padding == "same":
        lengths = _lengths(layer)
        totals = [_same(n, size[k], stride[k], 1) for k, n in zip(range(len(size)), lengths, strict=False)]
        if any(total % 2 for total in totals):
            raise UnsupportedError("its padding, 'same', is not the same on both sides; use 'valid'")
        around = tuple(total // 2 for total in totals)
    more = {} if kinds is _MAXIMA else {"count_include_pad": False}
    module = kinds[len(size) - 1](size, stride, around, **more)
    return drops(ChannelsFirst(module, last=layer.data_format == "channels_last"))


class OverAll(nn.Module):
    """The maximum or the mean over all places but the channels'.

    Args:
        maximum: or the mean.
        last: the channels are in the last dimension.
        keep: the dimensions, with one place each.

    """

    def __init__(self, *, maximum: bool, last: bool, keep: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.last = last
        self.keep = keep

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, C); of (B, T, C) only the steps that the mask has count."""
        first = inputs.movedim(-1, 1) if self.last else inputs
        if mask is not None:
            counts = mask.to(first.dtype).unsqueeze(1)
            out = (first * counts).sum(-1) / counts.sum(-1)
        else:
            flat = first.flatten(2)
            out = flat.amax(-1) if self.maximum else flat.mean(-1)
        if not self.keep:
            return out
        for _ in range(2, self.rank):
            out = out.unsqueeze(1 if self.last else -1)
        return out

    #: Dimensions of the input.
    rank = 3


def global_pooling(layer: Any) -> Translation:
    """Translate ``GlobalMaxPooling`` and ``GlobalAveragePooling`` in one to three dimensions."""
    name = type(layer).__name__
    maximum = "Max" in name
    module = OverAll(maximum=maximum, last=layer.data_format == "channels_last", keep=layer.keepdims)
    module.rank = int(name[-2]) + 2
    masked = not maximum and name.endswith("1D")
    return Translation(module, (("", "mask"),) if masked else (), out="none")


class Padded(nn.Module):
    """Zeros around, or places cut off.

    Args:
        padding: as ``torch.nn.functional.pad`` takes it, for (B, C, ...); negative numbers cut.
        last: the channels are in the last dimension.

    """

    def __init__(self, padding: Sequence[int], *, last: bool) -> None:
        super().__init__()
        self.padding = list(padding)
        self.last = last

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the padded input."""
        x = inputs.movedim(-1, 1) if self.last else inputs
        out = nn.functional.pad(x, self.padding)
        return out.movedim(1, -1) if self.last else out


def zero_padding(layer: Any) -> Translation:
    """Translate ``ZeroPadding`` and ``Cropping`` in one to three dimensions."""
    cropping = "Cropping" in type(layer).__name__
    given = layer.cropping if cropping else layer.padding
    pairs = [given] if isinstance(given[0], int) else list(given)
    sign = -1 if cropping else 1
    padding = [sign * n for pair in reversed(pairs) for n in pair]
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return drops(Padded(padding, last=last))


class Repeated(nn.Module):
    """Each place several times, along some dimensions.

    Args:
        times: by dimension of the input.

    Example:
        >>> Repeated({1: 2})(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 1., 2., 2.]])

    """

    def __init__(self, times: dict[int, int]) -> None:
        super().__init__()
        self.times = times

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the longer input."""
        for dim, times in self.times.items():
            inputs = torch.repeat_interleave(inputs, times, dim)
        return inputs


def upsampling(layer: Any) -> Translation:
    """Translate ``UpSampling`` to the nearest place."""
    if getattr(layer, "interpolation", "nearest") != "nearest":
        raise UnsupportedError(f"its interpolation is {layer.interpolation!r}, expected 'nearest'")
    size = [layer.size] if isinstance(layer.size, int) else list(layer.size)
    first = 1 if getattr(layer, "data_format", "channels_last") == "channels_last" else 2
    return drops(Repeated({first + k: times for k, times in enumerate(size)}))
