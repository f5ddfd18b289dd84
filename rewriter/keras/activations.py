"""Keras' activations as modules of torch's or atoms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.leaves import ReLUAtom, SigmoidAtom, TanhAtom
from rewriter.keras.layers.contract import UnsupportedError


class Exponential(nn.Module):
    """``exp(x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``exp(x)``, any shape."""
        return torch.exp(x)


class ClippedReLU(nn.Module):
    """Keras' ``ReLU``: a slope below a threshold, and a largest value.

    Args:
        slope: below the threshold.
        threshold: from which on values are kept.
        largest: value, or None.

    Example:
        >>> ClippedReLU(0.5, 1.0, 2.0)(torch.tensor([0.0, 1.5, 3.0]))
        tensor([-0.5000,  1.5000,  2.0000])

    """

    def __init__(self, slope: float, threshold: float, largest: float | None) -> None:
        super().__init__()
        self.slope = slope
        self.threshold = threshold
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified values, any shape."""
        below = self.slope * (x - self.threshold)
        y = torch.where(x >= self.threshold, x, below) if self.threshold else nn.functional.relu(x)
        if self.slope and not self.threshold:
            y = y - self.slope * nn.functional.relu(-x)
        return y if self.largest is None else torch.clamp(y, max=self.largest)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "exponential": Exponential,
    "gelu": nn.GELU,
    "hard_shrink": nn.Hardshrink,
    "hard_sigmoid": nn.Hardsigmoid,
    "hard_silu": nn.Hardswish,
    "hard_swish": nn.Hardswish,
    "hard_tanh": nn.Hardtanh,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "linear": nn.Identity,
    "log_sigmoid": nn.LogSigmoid,
    "log_softmax": lambda: nn.LogSoftmax(-1),
    "mish": nn.Mish,
    "relu": ReLUAtom,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": SigmoidAtom,
    "silu": nn.SiLU,
    "soft_shrink": nn.Softshrink,
    "softmax": lambda: nn.Softmax(-1),
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "tanh": TanhAtom,
    "tanh_shrink": nn.Tanhshrink,
}


def activation_name(function: Any) -> str:
    """Return the name of one of Keras' functions, ``""`` for any other.

    Example:
        >>> activation_name(torch.tanh), activation_name(None)
        ('', 'linear')

    """
    if function is None:
        return "linear"
    own = str(getattr(function, "__module__", "")).startswith("keras.")
    return str(getattr(function, "__name__", "")) if own else ""


def activation(function: Any) -> nn.Module:
    """Return the module of an activation: of Keras, or a torch module that a user passes.

    Raises:
        UnsupportedError: for any other function.

    Example:
        >>> activation(None)
        Identity()

    """
    if isinstance(function, nn.Module) and type(function).__module__.startswith("torch.nn."):
        return function
    name = activation_name(function)
    if name not in ACTIVATIONS:
        shown = getattr(function, "__name__", None) or type(function).__name__
        raise UnsupportedError(
            f"its activation {shown!r} is not one of those that are known: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]()
