"""Dense layers, embeddings and activations."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import ReLUAtom
from rewriter.keras.activations import ClippedReLU, activation
from rewriter.keras.layers.contract import Translation, UnsupportedError, drops, stays
from rewriter.keras.weights import linear, optional, parameter, tensor_of


def activated(module: nn.Module, name: str, function: Any) -> nn.Module:
    """Put an activation behind a module, unless it does nothing.

    Example:
        >>> activated(nn.Linear(2, 2), "linear", None)
        Linear(in_features=2, out_features=2, bias=True)

    """
    behind = activation(function)
    if isinstance(behind, nn.Identity):
        return module
    return nn.Sequential(OrderedDict([(name, module), ("activation", behind)]))


def dense(layer: Any) -> Translation:
    """Translate a ``Dense``."""
    return stays(activated(linear(layer.kernel, layer.bias), "linear", layer.activation))


class Einsum(nn.Module):
    """Keras' ``EinsumDense``, but for its activation.

    Args:
        equation: of the input and the kernel, with an ellipsis where Keras' has one.
        kernel: the weights.
        bias: broadcasts to the output, or None.

    """

    def __init__(self, equation: str, kernel: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.equation = equation
        self.kernel = kernel
        self.bias = bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product, with the bias."""
        out = torch.einsum(self.equation, inputs, self.kernel)
        return out if self.bias is None else out + self.bias


def einsum_dense(layer: Any) -> Translation:
    """Translate an ``EinsumDense``."""
    module = Einsum(layer.equation, parameter(layer.kernel), optional(layer.bias))
    return drops(activated(module, "einsum", layer.activation))


class Lookup(nn.Module):
    """An embedding of numbers that may come as floats.

    Args:
        table: (N, D).

    Example:
        >>> Lookup(nn.Parameter(torch.eye(2)))(torch.tensor([1.0]))
        tensor([[0., 1.]], grad_fn=<EmbeddingBackward0>)

    """

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
        # Another parameter would be made of it.
        self.table.weight = table

    def forward(self, inputs: Tensor) -> Tensor:
        """Return rows of the table, (..., D)."""
        rows: Tensor = self.table(inputs.long())
        return rows


class NotZero(nn.Module):
    """The mask of numbers that are not zero."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, T) bool."""
        return inputs != 0


def embedding(layer: Any) -> Translation:
    """Translate an ``Embedding``."""
    module = Lookup(parameter(layer.embeddings))
    return Translation(module, makes=NotZero(), out="made") if layer.mask_zero else drops(module)


class Masked(nn.Module):
    """Keras' ``Masking``: zeros where all features have one value.

    Args:
        value: which.

    Example:
        >>> Masked(9.0)(torch.tensor([[[9.0, 9.0], [9.0, 1.0]]]))
        tensor([[[0., 0.],
                 [9., 1.]]])

    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, T, F)."""
        return torch.where((inputs != self.value).any(-1, keepdim=True), inputs, 0.0)


class Counts(nn.Module):
    """The mask that Keras' ``Masking`` makes.

    Args:
        value: of the features of a step that is left out.

    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, T) bool."""
        return (inputs != self.value).any(-1)


def masking(layer: Any) -> Translation:
    """Translate a ``Masking``."""
    return Translation(Masked(float(layer.mask_value)), makes=Counts(float(layer.mask_value)), out="made")


def activation_layer(layer: Any) -> Translation:
    """Translate an ``Activation``."""
    return stays(activation(layer.activation))


def relu(layer: Any) -> Translation:
    """Translate a ``ReLU``."""
    slope, threshold, largest = layer.negative_slope, layer.threshold, layer.max_value
    plain = not slope and not threshold and largest is None
    return stays(ReLUAtom() if plain else ClippedReLU(float(slope or 0), float(threshold or 0), largest))


def leaky_relu(layer: Any) -> Translation:
    """Translate a ``LeakyReLU``."""
    return stays(nn.LeakyReLU(float(layer.negative_slope)))


def elu(layer: Any) -> Translation:
    """Translate an ``ELU``."""
    return stays(nn.ELU(float(layer.alpha)))


class Parametric(nn.Module):
    """Keras' ``PReLU``: a slope for each place below zero.

    Args:
        slope: broadcasts to the rows of the input.

    """

    def __init__(self, slope: nn.Parameter) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified values."""
        return nn.functional.relu(x) - self.slope * nn.functional.relu(-x)


def prelu(layer: Any) -> Translation:
    """Translate a ``PReLU``."""
    return stays(Parametric(parameter(layer.alpha)))


class MaskedSoftmax(nn.Module):
    """Keras' ``Softmax``, which may take a mask.

    Args:
        axis: over which.

    Example:
        >>> MaskedSoftmax(-1)(torch.zeros(1, 2), torch.tensor([[True, False]]))
        tensor([[1., 0.]])

    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return shares that sum to one along the axis."""
        if mask is not None:
            inputs = torch.where(mask, inputs, -1e9)
        return nn.functional.softmax(inputs, self.axis)


def softmax(layer: Any) -> Translation:
    """Translate a ``Softmax``."""
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) and len(layer.axis) == 1 else layer.axis
    if not isinstance(axis, int):
        raise UnsupportedError(f"it sums over several axes, {axis}; expected one")
    return Translation(MaskedSoftmax(axis), (("", "mask"),))


def identity(_: Any) -> Translation:
    """Translate a layer that does nothing when it is not trained: dropout, noise, a regularizer."""
    return stays(nn.Identity())


class Scaled(nn.Module):
    """``x * scale + offset``.

    Args:
        scale: a number, or what broadcasts to the rows of the input.
        offset: the same.

    Example:
        >>> Scaled(2.0, 1.0)(torch.ones(1))
        tensor([3.])

    """

    def __init__(self, scale: float | Tensor, offset: float | Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale))
        self.register_buffer("offset", torch.as_tensor(offset))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scaled values."""
        return torch.add(inputs * self.scale, self.offset)  # type: ignore[operator,arg-type]  # buffers


def rescaling(layer: Any) -> Translation:
    """Translate a ``Rescaling``."""
    scale, offset = (torch.as_tensor(each, dtype=torch.float32) for each in (layer.scale, layer.offset))
    return stays(Scaled(scale, offset))


def normalization(layer: Any) -> Translation:
    """Translate a ``Normalization`` that knows the mean and the variance."""
    if getattr(layer, "mean", None) is None:
        raise UnsupportedError("it knows no mean yet: call its adapt(data)")
    mean, variance = (tensor_of(each).detach().float() for each in (layer.mean, layer.variance))
    spread = variance.sqrt().clamp(min=1e-7)
    if layer.invert:
        return stays(Scaled(spread, mean))
    return stays(Scaled(1 / spread, -mean / spread))


def unsupported_if_half(layer: Any) -> None:
    """Refuse a layer that computes in half precision, or with quantised weights.

    Raises:
        UnsupportedError: saying what to do.

    """
    if layer.compute_dtype not in ("float32", "float64") and not str(layer.compute_dtype).startswith("int"):
        raise UnsupportedError(
            f"it computes in {layer.compute_dtype}; attributions are differences, which need full precision: "
            "build the model with the dtype policy float32, and load its weights into that"
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise UnsupportedError(f"it is quantised, {layer.quantization_mode}; explain the model from before")


def scale_of(size: int) -> float:
    """Return what dot products of that many numbers are scaled by.

    Example:
        >>> scale_of(4)
        0.5

    """
    return 1 / math.sqrt(size)
