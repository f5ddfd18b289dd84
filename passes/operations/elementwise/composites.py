"""Functions of each element that are made of several atoms, or of atoms and linear operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.leaves import Layout, Mul, ReLUAtom, SigmoidAtom
from passes.operations.elementwise.atom import Elementwise


class GatedLinear(nn.Module):
    """``nn.GLU``: one half of the features times the sigmoid of the other.

    Args:
        dim: along which the input is halved.

    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.sigmoid = SigmoidAtom()
        self.mul = Mul()

    def forward(self, input: Tensor) -> Any:
        """Return half of ``input``."""
        value, gate = input.chunk(2, self.dim)
        return self.mul(value, self.sigmoid(gate))


class LearnedLeakyReLU(nn.Module):
    """``nn.PReLU``: the slope of negative values is a weight, of all or of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = ReLUAtom()
        # Not the rectifier: at 0 the derivative of the whole is the weight.
        self.negative = Elementwise("clamp", max=0)

    def forward(self, input: Tensor, weight: Tensor) -> Any:
        """Return the shape of ``input``; channels are in dimension 1, if it has one."""
        # Two dimensions more, so that there is a dimension 1 even of a single number.
        channels_last = self.negative(input).unsqueeze(-1).unsqueeze(-1).transpose(1, -1)
        scaled = (channels_last * weight).transpose(1, -1)
        return self.positive(input) + scaled.squeeze(-1).squeeze(-1)


class LearnedLeakyReLULayer(nn.Module):
    """``nn.PReLU`` with its parameter.

    Args:
        module: owns the weight.

    """

    def __init__(self, module: nn.PReLU) -> None:
        super().__init__()
        self.num_parameters = module.num_parameters
        self.init = module.init
        self.weight = module.weight
        self.slope = LearnedLeakyReLU()

    def forward(self, input: Tensor) -> Any:
        """Return the shape of ``input``."""
        return self.slope(input, self.weight)


class InPlace(nn.Module):
    """A function of each element that overwrites its input, as modules with ``inplace=True`` do.

    Args:
        atom: the function.

    """

    def __init__(self, atom: nn.Module) -> None:
        super().__init__()
        self.inplace = True
        self.atom = atom

    def forward(self, input: Tensor) -> Any:
        """Keep what the atom saw: its rule needs it."""
        result = self.atom(input.clone())
        try:
            return input.copy_(result)
        except RuntimeError:
            # Torch refuses to replace the gradient of what a module with hooks returned.
            input.detach().copy_(result)
            return result


class Parts(NamedTuple):
    """What ``torch.frexp`` returns."""

    mantissa: Any
    exponent: Any


class Exponent(Layout):
    """The power of two of each number, which is discrete.

    Example:
        >>> Exponent()(torch.tensor([3.0]))
        tensor([2], dtype=torch.int32)

    """

    def forward(self, input: Tensor) -> Tensor:
        """Return whole numbers of the shape of ``input``."""
        with torch._C.DisableTorchFunction():
            return torch.frexp(input.detach()).exponent


class MantissaAndExponent(nn.Module):
    """``torch.frexp``.

    Example:
        >>> MantissaAndExponent()(torch.tensor(3.0)).mantissa
        tensor(0.7500)

    """

    def __init__(self) -> None:
        super().__init__()
        self.mantissa = Elementwise("frexp")
        self.exponent = Exponent()

    def forward(self, input: Tensor) -> Parts:
        """Return both parts of ``input``, any shape."""
        return Parts(self.mantissa(input), self.exponent(input))
