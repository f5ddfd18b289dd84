"""The atom for functions of each element."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from passes.leaves import Atom
from passes.operations.operation import function_named
from passes.stand_in import Combined, blank


def _powers(exponent: Tensor, base: float) -> Tensor:
    return torch.pow(base, exponent)


def _floor_divide(x: Tensor, other: float) -> Tensor:
    # As torch.floor_divide, which has no derivative.
    return torch.div(x, other, rounding_mode="floor")


def _polygamma(x: Tensor, n: int) -> Tensor:
    return torch.polygamma(n, x)


def _mantissa(x: Tensor) -> Tensor:
    return torch.frexp(x).mantissa


# Functions that torch has in another form.
_OWN: Mapping[str, Callable[..., Tensor]] = {
    "powers": _powers,
    "floor_divide": _floor_divide,
    "polygamma": _polygamma,
    "frexp": _mantissa,
}


@functools.cache
def computed_by(function: str) -> Callable[..., Tensor]:
    """Return what computes the function of that name.

    Example:
        >>> computed_by("exp") is torch.exp, computed_by("special.entr") is torch.special.entr
        (True, True)

    """
    return _OWN.get(function) or function_named(function)


class Elementwise(Combined, Atom):
    """A function of each element.

    Args:
        function: its name behind ``torch.`` or ``torch.nn.functional.``.
        options: further arguments of the function, plain numbers or names.

    Example:
        >>> Elementwise("square")(torch.tensor([3.0]))
        tensor([9.])

    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of ``input``, any shape."""
        return computed_by(self.function)(input, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])


class RandomLeakyReLU(Atom, nn.RReLU):
    """A random slope of negative values in training mode, the mean slope otherwise.

    Example:
        >>> RandomLeakyReLU(0.25, 0.75).eval()(torch.tensor([-2.0, 3.0]))
        tensor([-1.,  3.])

    """

    def in_evaluation(self) -> Elementwise:
        """Return the function that it is then."""
        return Elementwise("leaky_relu", negative_slope=(self.lower + self.upper) / 2)


def in_place_of(module: nn.Module, atom: Elementwise) -> Elementwise:
    """Let ``atom`` answer ``isinstance`` and show the settings as one of torch's modules does.

    Example:
        >>> atom = in_place_of(nn.LeakyReLU(0.2), Elementwise("leaky_relu", negative_slope=0.2))
        >>> isinstance(atom, nn.LeakyReLU), atom.negative_slope, atom
        (True, 0.2, Elementwise(leaky_relu, negative_slope=0.2))

    """
    settings = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    stand_in = cast("Elementwise", blank(type(atom), type(module)))
    stand_in.__dict__.update(settings | atom.__dict__)
    return stand_in
