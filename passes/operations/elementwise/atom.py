"""The atom for functions of each element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom


def _powers(exponent: Tensor, base: float | Tensor) -> Tensor:
    return torch.pow(base, exponent)


#: What an :class:`Elementwise` may compute.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    **{
        each.__name__: each
        for each in (
            *(torch.abs, torch.acos, torch.acosh, torch.asin, torch.asinh, torch.atan, torch.atanh),
            *(torch.ceil, torch.clamp, torch.cos, torch.cosh, torch.digamma, torch.div, torch.erf),
            *(
                torch.erfc,
                torch.erfinv,
                torch.exp,
                torch.exp2,
                torch.expm1,
                torch.floor,
                torch.fmod,
            ),
            *(torch.frac, torch.lgamma, torch.log, torch.log10, torch.log1p, torch.log2, torch.logit),
            *(
                torch.nan_to_num,
                torch.pow,
                torch.reciprocal,
                torch.remainder,
                torch.round,
                torch.rsqrt,
                torch.sgn,
            ),
            *(torch.sign, torch.sin, torch.sinc, torch.sinh, torch.sqrt, torch.square, torch.tan),
            *(torch.trunc, torch.i0),
            *(F.celu, F.elu, F.gelu, F.hardshrink, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu),
            *(F.mish, F.relu6, F.selu, F.silu, F.softplus, F.softshrink, F.softsign),
            F.tanhshrink,
        )
    },
    "logsigmoid": F.logsigmoid,
    "threshold": F.threshold,
    # As torch.floor_divide, which has no derivative.
    "floor_divide": lambda x, other: torch.div(x, other, rounding_mode="floor"),
    "entr": torch.special.entr,
    "log_ndtr": torch.special.log_ndtr,
    "ndtr": torch.special.ndtr,
    "powers": _powers,
    # What follows takes an operand that is the same for all inputs.
    "at_least": lambda x, bound: torch.clamp(x, min=bound),
    "at_most": lambda x, bound: torch.clamp(x, max=bound),
    "power_of_each": torch.pow,
    "powers_of_each": _powers,
    "xlogy_of_each": lambda x, factor: torch.xlogy(factor, x),
    "xlog1py_of_each": lambda x, factor: torch.special.xlog1py(factor, x),
}


class Elementwise(Atom):
    """A function of each element.

    Args:
        function: a key of :data:`FUNCTIONS`.
        options: further arguments of the function, plain numbers or names.

    Example:
        >>> Elementwise("square")(torch.tensor([3.0]))
        tensor([9.])

    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, input: Tensor, *fixed: Tensor) -> Tensor:
        """Return the function of ``input``, any shape, with operands that are no input of the model."""
        return FUNCTIONS[self.function](input, *fixed, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind = type(self).__dict__.get("_stands_in_for")
        if kind is None:
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        return _blank, (kind, _own_class(type(self))), self.__dict__.copy()


class RandomLeakyReLU(Atom, nn.RReLU):
    """A random slope of negative values in training mode, the mean slope otherwise.

    Example:
        >>> RandomLeakyReLU(0.25, 0.75).eval()(torch.tensor([-2.0, 3.0]))
        tensor([-1.,  3.])

    """

    def in_evaluation(self) -> Elementwise:
        """Return the function that it is then."""
        return Elementwise("leaky_relu", negative_slope=(self.lower + self.upper) / 2)


_CLASSES: dict[tuple[type[nn.Module], type[Elementwise]], type[Elementwise]] = {}


def in_place_of(module: nn.Module, atom: Elementwise) -> Elementwise:
    """Let ``atom`` answer ``isinstance`` and show the settings as one of torch's modules does.

    Example:
        >>> atom = in_place_of(nn.LeakyReLU(0.2), Elementwise("leaky_relu", negative_slope=0.2))
        >>> isinstance(atom, nn.LeakyReLU), atom.negative_slope, atom
        (True, 0.2, Elementwise(leaky_relu, negative_slope=0.2))

    """
    settings = {key: value for key, value in module.__dict__.items() if not key.startswith("_")}
    stand_in = _blank(type(module), type(atom))
    stand_in.__dict__.update(settings | atom.__dict__)
    return stand_in


def _blank(kind: type[nn.Module], own: type[Elementwise]) -> Elementwise:
    key = (kind, own)
    if key not in _CLASSES:
        # Under the atom's name: shap looks rules up by the name of the class.
        namespace = {"_stands_in_for": kind, "__module__": own.__module__}
        _CLASSES[key] = cast("type[Elementwise]", type(own.__name__, (own, kind), namespace))
    cls = _CLASSES[key]
    return cls.__new__(cls)


def _own_class(cls: type[Elementwise]) -> type[Elementwise]:
    return cast("type[Elementwise]", cls.__bases__[0])
