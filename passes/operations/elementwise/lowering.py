"""Functions of each element as atoms: activations, powers, exponentials, roundings."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from passes.leaves import Atom, ReLUAtom, SigmoidAtom, TanhAtom
from passes.operations.contract import Build, Lowering, Textbook, Varies
from passes.operations.elementwise.atom import FUNCTIONS, Elementwise, RandomLeakyReLU, in_place_of
from passes.operations.elementwise.composites import (
    Between,
    Double,
    Fixed,
    GatedLinear,
    InPlace,
    LearnedLeakyReLU,
    LearnedLeakyReLULayer,
    Over,
)

# What follows the input in the signature of each function that has more arguments.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "celu": ("alpha", "inplace"),
    "clamp": ("min", "max"),
    "div": ("other",),
    "elu": ("alpha", "inplace"),
    "floor_divide": ("other",),
    "fmod": ("other",),
    "gelu": ("approximate",),
    "hardshrink": ("lambd",),
    "hardsigmoid": ("inplace",),
    "hardswish": ("inplace",),
    "hardtanh": ("min_val", "max_val", "inplace"),
    "leaky_relu": ("negative_slope", "inplace"),
    "logit": ("eps",),
    "mish": ("inplace",),
    "nan_to_num": ("nan", "posinf", "neginf"),
    "relu": ("inplace",),
    "relu6": ("inplace",),
    "remainder": ("other",),
    "round": ("decimals",),
    "selu": ("inplace",),
    "silu": ("inplace",),
    "softplus": ("beta", "threshold"),
    "softshrink": ("lambd",),
    "threshold": ("threshold", "value", "inplace"),
}
# Lowered by functions of their own below, or not callable by users.
_OTHERWISE = {
    "at_least", "at_most", "clamp", "pow", "power_of_each", "powers", "powers_of_each", "xlogy_of_each",
    "xlog1py_of_each",
}  # fmt: skip
# Further names, as ``torch.name``, ``torch.special.name`` and methods.
_ALIASES: Mapping[str, str] = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctanh": "atanh",
    "expit": "sigmoid",
    "fix": "trunc",
    "gammaln": "lgamma",
    "psi": "digamma",
}
_ATOMS: Mapping[str, type[Atom]] = {"relu": ReLUAtom, "sigmoid": SigmoidAtom, "tanh": TanhAtom}
_PLAIN = (bool, int, float, str, type(None))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _atom(function: str, **options: Any) -> Atom:
    return _ATOMS[function](**options) if function in _ATOMS else Elementwise(function, **options)


def _unary(function: str) -> Lowering:
    parameters = _ARGUMENTS.get(function, ())

    def lower(varies: Varies, input: Any, *args: Any, **kwargs: Any) -> Textbook | None:
        options = dict(zip(parameters, args, strict=False)) | kwargs
        if options.pop("inplace", False) or options.pop("out", None) is not None:
            return None
        if not varies(input) or not all(isinstance(each, _PLAIN) for each in options.values()):
            return None
        return _atom(function, **options), (input,)

    return lower


def _clamp(varies: Varies, input: Any, min: Any = None, max: Any = None, **rest: Any) -> Textbook | None:
    if rest or varies((min, max)):
        return None
    if isinstance(min, _PLAIN) and isinstance(max, _PLAIN):
        return Elementwise("clamp", min=min, max=max), (input,)
    if min is None:
        return Fixed("at_most"), (input, max)
    return (Fixed("at_least"), (input, min)) if max is None else (Between(), (input, min, max))


def _clamp_max(varies: Varies, input: Any, max: Any, **rest: Any) -> Textbook | None:
    return _clamp(varies, input, None, max, **rest)


_NAMED_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def _pow(varies: Varies, input: Any, exponent: Any, **rest: Any) -> Textbook | None:
    if rest or (varies(input) and varies(exponent)):
        return None
    if varies(exponent):
        if _is_number(input):
            return Elementwise("powers", base=input), (exponent,)
        return Fixed("powers_of_each"), (exponent, input)
    if not _is_number(exponent):
        return Fixed("power_of_each"), (input, exponent)
    if exponent in (0, 1):
        return None
    if exponent in _NAMED_POWERS:
        return Elementwise(_NAMED_POWERS[exponent]), (input,)
    return Elementwise("pow", exponent=exponent), (input,)


def _power_of_other(varies: Varies, input: Any, other: Any) -> Textbook | None:
    # The method behind ``other ** input``.
    return _pow(varies, other, input)


def _float_power(varies: Varies, input: Any, exponent: Any, **rest: Any) -> Textbook | None:
    if exponent == 1 or not (_is_number(exponent) or _is_number(input)):
        return None
    textbook = _pow(varies, input, exponent, **rest)
    return textbook and (Double(textbook[0]), textbook[1])


def _div(
    varies: Varies, input: Any, other: Any, *, rounding_mode: str | None = None, **rest: Any
) -> Textbook | None:
    if rest or (varies(input) and varies(other)):
        return None
    if rounding_mode is not None:
        whole = Elementwise("div", other=other, rounding_mode=rounding_mode)
        return (whole, (input,)) if _is_number(other) else None
    return (Over(), (input, other)) if varies(other) else None


def _over(varies: Varies, input: Any, other: Any) -> Textbook | None:
    # The method behind ``other / input``.
    return _div(varies, other, input)


def _xlogy(function: str) -> Lowering:
    def lower(varies: Varies, input: Any, other: Any, **rest: Any) -> Textbook | None:
        linear = varies(input) or rest
        return None if linear else (Fixed(function), (other, input))

    return lower


def _glu(varies: Varies, input: Any, dim: int = -1, **rest: Any) -> Textbook | None:
    return None if rest else (GatedLinear(dim), (input,))


def _prelu(varies: Varies, input: Any, weight: Any) -> Textbook | None:
    return None if varies(weight) else (LearnedLeakyReLU(), (input, weight))


def _rrelu(
    varies: Varies,
    input: Any,
    lower: Any = 1 / 8,
    upper: Any = 1 / 3,
    training: Any = False,
    inplace: Any = False,
    **rest: Any,
) -> Textbook | None:
    if training or inplace or rest:
        return None
    return Elementwise("leaky_relu", negative_slope=(lower + upper) / 2), (input,)


def _targets(name: str) -> list[Any]:
    spaces = (torch, F, torch.special, operator, builtins)
    named = [function for space in spaces if callable(function := getattr(space, name, None))]
    return [*named, name] if hasattr(torch.Tensor, name) else named


_UNARY = [name for name in [*FUNCTIONS, *_ATOMS] if name not in _OTHERWISE and name != "div"]
_BY_NAME: Mapping[str, Lowering] = {
    **{name: _unary(name) for name in _UNARY},
    **{alias: _unary(name) for alias, name in _ALIASES.items()},
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    **dict.fromkeys(("pow", "__pow__"), _pow),
    "__rpow__": _power_of_other,
    "float_power": _float_power,
    **dict.fromkeys(("div", "divide", "truediv", "true_divide", "__truediv__"), _div),
    **dict.fromkeys(("__rtruediv__", "__rdiv__"), _over),
    **dict.fromkeys(("floordiv", "__floordiv__"), _unary("floor_divide")),
    **dict.fromkeys(("mod", "__mod__"), _unary("remainder")),
    "__abs__": _unary("abs"),
    "xlogy": _xlogy("xlogy_of_each"),
    "xlog1py": _xlogy("xlog1py_of_each"),
    "glu": _glu,
    "prelu": _prelu,
    "rrelu": _rrelu,
}
CALLS: Mapping[Any, Lowering] = {
    target: lowering for name, lowering in _BY_NAME.items() for target in _targets(name)
}


def _module(function: str, *settings: str) -> Build:
    def build(module: Any) -> nn.Module:
        atom = _atom(function, **{name: getattr(module, name) for name in settings})
        if getattr(module, "inplace", False):
            return InPlace(atom)
        return in_place_of(module, atom) if isinstance(atom, Elementwise) else atom

    return build


def _random(module: Any) -> nn.Module:
    atom = RandomLeakyReLU(module.lower, module.upper)
    return InPlace(atom) if module.inplace else atom


MODULES: Mapping[type[nn.Module], Build] = {
    nn.CELU: _module("celu", "alpha"),
    nn.ELU: _module("elu", "alpha"),
    nn.GELU: _module("gelu", "approximate"),
    nn.GLU: lambda module: GatedLinear(module.dim),
    nn.Hardshrink: _module("hardshrink", "lambd"),
    nn.Hardsigmoid: _module("hardsigmoid"),
    nn.Hardswish: _module("hardswish"),
    nn.Hardtanh: _module("hardtanh", "min_val", "max_val"),
    nn.LeakyReLU: _module("leaky_relu", "negative_slope"),
    nn.LogSigmoid: _module("logsigmoid"),
    nn.Mish: _module("mish"),
    nn.PReLU: LearnedLeakyReLULayer,
    nn.RReLU: _random,
    nn.ReLU: _module("relu"),
    nn.ReLU6: _module("relu6"),
    nn.SELU: _module("selu"),
    nn.SiLU: _module("silu"),
    nn.Sigmoid: _module("sigmoid"),
    nn.Softplus: _module("softplus", "beta", "threshold"),
    nn.Softshrink: _module("softshrink", "lambd"),
    nn.Softsign: _module("softsign"),
    nn.Tanh: _module("tanh"),
    nn.Tanhshrink: _module("tanhshrink"),
    nn.Threshold: _module("threshold", "threshold", "value"),
}
