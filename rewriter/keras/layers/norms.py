"""Normalising layers, as they are when they are not trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rewriter.keras.layers.contract import Translation, UnsupportedError, stays
from rewriter.keras.layers.convolutions import ChannelsFirst
from rewriter.keras.weights import optional, parameter


class KeptStatistics(nn.Module):
    """Keras' ``BatchNormalization`` with the statistics that it has kept, in either mode.

    Args:
        mean: of each channel.
        variance: of each channel.
        gamma: or None.
        beta: or None.
        axis: of the channels.
        epsilon: added to the variance.

    """

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        gamma: nn.Parameter | None,
        beta: nn.Parameter | None,
        axis: int,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        self.gamma = gamma
        self.beta = beta
        self.axis = axis
        self.epsilon = epsilon

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalised values, in the shape of the input."""
        x = inputs if self.axis == 1 else inputs.movedim(self.axis, 1)
        x = nn.functional.batch_norm(
            x,
            self.get_buffer("mean"),
            self.get_buffer("variance"),
            self.gamma,
            self.beta,
            training=False,
            eps=self.epsilon,
        )
        return x if self.axis == 1 else x.movedim(1, self.axis)


def batch(layer: Any) -> Translation:
    """Translate a ``BatchNormalization``."""
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
    mean, variance = (parameter(each).detach() for each in (layer.moving_mean, layer.moving_variance))
    return stays(
        KeptStatistics(
            mean, variance, optional(layer.gamma), optional(layer.beta), axis, float(layer.epsilon)
        )
    )


def layer_norm(layer: Any) -> Translation:
    """Translate a ``LayerNormalization`` over the last axes."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    rank = len((layer.get_build_config() or {})["input_shape"])
    places = sorted(axis % rank for axis in axes)
    if places != list(range(rank - len(places), rank)):
        raise UnsupportedError(f"its axes {axes} are not the last ones; put them there by a Permute")
    if getattr(layer, "rms_scaling", False):
        raise UnsupportedError("rms_scaling is deprecated; use RMSNormalization")
    shape = tuple((layer.get_build_config() or {})["input_shape"][place] for place in places)
    module = nn.LayerNorm(shape, eps=float(layer.epsilon), elementwise_affine=False)
    module.register_parameter("weight", optional(layer.gamma))
    module.register_parameter("bias", optional(layer.beta))
    return stays(module)


def rms_norm(layer: Any) -> Translation:
    """Translate an ``RMSNormalization`` over the last axis."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes != [-1]:
        raise UnsupportedError(f"its axes are {axes}, expected the last one")
    module = nn.RMSNorm(layer.scale.shape, eps=float(layer.epsilon), elementwise_affine=False)
    module.register_parameter("weight", parameter(layer.scale))
    return stays(module)


def group_norm(layer: Any) -> Translation:
    """Translate a ``GroupNormalization`` over the channels, first or last."""
    rank = len((layer.get_build_config() or {})["input_shape"])
    axis = layer.axis % rank
    if axis not in (1, rank - 1):
        raise UnsupportedError(f"its axis is {layer.axis}, expected the first or the last one")
    channels = (layer.get_build_config() or {})["input_shape"][axis]
    module = nn.GroupNorm(layer.groups, channels, eps=float(layer.epsilon), affine=False)
    module.register_parameter("weight", optional(layer.gamma))
    module.register_parameter("bias", optional(layer.beta))
    return stays(ChannelsFirst(module, last=axis == rank - 1))
