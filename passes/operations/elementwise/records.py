"""Functions of each element. A new one is one line here, with its slope if that has a closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from passes.leaves import ReLUAtom, SigmoidAtom, TanhAtom
from passes.operations.contract import Build, Multipliers, Rule, always, scaled
from passes.operations.elementwise import slopes
from passes.operations.elementwise.atom import Elementwise, RandomLeakyReLU
from passes.operations.elementwise.chord import by_slope, chord_multiplier
from passes.operations.elementwise.composites import LearnedLeakyReLULayer
from passes.operations.elementwise.lowering import (
    build_glu,
    build_module,
    build_rrelu,
    lower_call,
    lower_frexp,
    lower_glu,
    lower_prelu,
    lower_rrelu,
)
from passes.operations.elementwise.sigmoid_tanh_relu import (
    relu_multiplier,
    sigmoid_multiplier,
    tanh_multiplier,
)
from passes.operations.elementwise.slopes import Slope
from passes.operations.operation import Operation, nonlinear


@dataclass(frozen=True)
class Function(Operation):
    """A function of each element.

    Args:
        slope: of its chord, in closed form; without one it is found from the derivative.
        module: the layer that applies it, whose settings have the names of the parameters.
        complex: whether the slope is that of complex numbers, too.

    """

    slope: Slope | None = None
    module: type[nn.Module] | None = None
    complex: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The parameters that are no tensor."""
        return tuple(each for each in self.parameters if each not in (self.first, "inplace"))


def _function(signature: str, *aliases: str, **own: Any) -> Function:
    found = nonlinear(signature, *aliases, lower=None)
    return Function(**(vars(found) | {"lower": lower_call(found.name)} | own))


FUNCTIONS: tuple[Function, ...] = (
    # Activations.
    _function("celu(input, alpha=1.0, inplace=False)", slope=slopes.celu, module=nn.CELU),
    _function("elu(input, alpha=1.0, inplace=False)", slope=slopes.elu, module=nn.ELU),
    _function("gelu(input, approximate='none')", slope=slopes.gelu, module=nn.GELU),
    _function("hardshrink(input, lambd=0.5)", module=nn.Hardshrink),
    _function("hardsigmoid(input, inplace=False)", slope=slopes.hardsigmoid, module=nn.Hardsigmoid),
    _function("hardswish(input, inplace=False)", module=nn.Hardswish),
    _function("hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False)", module=nn.Hardtanh),
    _function("leaky_relu(input, negative_slope=0.01, inplace=False)", module=nn.LeakyReLU),
    _function("logsigmoid(input)", "log_sigmoid", slope=slopes.logsigmoid, module=nn.LogSigmoid),
    _function("mish(input, inplace=False)", slope=slopes.mish, module=nn.Mish),
    _function("relu(input, inplace=False)", module=nn.ReLU),
    _function("relu6(input, inplace=False)", module=nn.ReLU6),
    _function("selu(input, inplace=False)", slope=slopes.selu, module=nn.SELU),
    _function("sigmoid(input)", "special.expit", module=nn.Sigmoid),
    _function("silu(input, inplace=False)", slope=slopes.silu, module=nn.SiLU),
    _function("softplus(input, beta=1.0, threshold=20.0)", slope=slopes.softplus, module=nn.Softplus),
    _function("softshrink(input, lambd=0.5)", module=nn.Softshrink),
    _function("softsign(input)", slope=slopes.softsign, module=nn.Softsign),
    _function("tanh(input)", module=nn.Tanh),
    _function("tanhshrink(input)", slope=slopes.tanhshrink, module=nn.Tanhshrink),
    _function("threshold(input, threshold, value, inplace=False)", "_threshold", module=nn.Threshold),
    # Exponentials, logarithms and powers.
    _function("exp(input)", slope=slopes.exponential(1.0)),
    _function("exp2(input)", slope=slopes.exponential(math.log(2))),
    _function("expm1(input)", slope=slopes.expm1),
    _function("log(input)", slope=slopes.logarithm(math.e)),
    _function("log10(input)", slope=slopes.logarithm(10)),
    _function("log1p(input)", slope=slopes.logarithm(math.e, 1.0)),
    _function("log2(input)", slope=slopes.logarithm(2)),
    _function("logit(input, eps=None)"),
    _function("reciprocal(input)", slope=slopes.reciprocal),
    _function("rsqrt(input)", slope=slopes.rsqrt),
    _function("sqrt(input)", slope=slopes.sqrt),
    _function("square(input)", slope=slopes.square),
    # Trigonometry.
    _function("acos(input)", "arccos"),
    _function("acosh(input)", "arccosh"),
    _function("asin(input)", "arcsin"),
    _function("asinh(input)", "arcsinh"),
    _function("atan(input)", "arctan"),
    _function("atanh(input)", "arctanh"),
    _function("cos(input)"),
    _function("cosh(input)"),
    _function("sin(input)"),
    _function("sinc(input)"),
    _function("sinh(input)"),
    _function("tan(input)"),
    # Kinks and steps.
    _function("abs(input)", "absolute", slope=slopes.magnitude, complex=True),
    _function("angle(input)"),
    _function("ceil(input)"),
    _function("floor(input)"),
    _function("frac(input)"),
    _function("nan_to_num(input, nan=0.0, posinf=None, neginf=None)"),
    _function("round(input, decimals=0)"),
    _function("sgn(input)"),
    _function("sign(input)"),
    _function("trunc(input)", "fix"),
    # Special functions.
    _function("digamma(input)", "special.psi"),
    _function("erf(input)", slope=slopes.erf),
    _function("erfc(input)", slope=slopes.erfc),
    _function("erfinv(input)"),
    _function("i0(input)"),
    _function("lgamma(input)", "special.gammaln"),
    _function("mvlgamma(input, p)", "special.multigammaln"),
    _function("polygamma(n, input)", method=("input", "n")),
    _function("special.entr(input)"),
    _function("special.erfcx(input)"),
    _function("special.i0e(input)"),
    _function("special.i1(input)"),
    _function("special.i1e(input)"),
    _function("special.log_ndtr(input)"),
    _function("special.ndtr(input)", slope=slopes.ndtr),
    _function("special.ndtri(input)"),
)
_BY_NAME: Mapping[str, Function] = {each.name: each for each in FUNCTIONS}
# Of what an atom computes and no call is named after: see passes.operations.pairwise.
_SLOPES: Mapping[str, Slope] = {"pow": slopes.power, "powers": slopes.powers}


def multipliers_of(atom: Elementwise) -> Multipliers:
    """Return the rule of an atom.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1)
        >>> multipliers_of(Elementwise("pow", exponent=3))((2 * one,), (one,), 8 * one, one)
        (tensor([[7.]]),)

    """
    known = _BY_NAME.get(atom.function)
    slope = known.slope if known else _SLOPES.get(atom.function)
    if slope is None:
        return partial(chord_multiplier, atom.forward)
    return partial(by_slope, partial(slope, **atom.options))


def _random(atom: RandomLeakyReLU) -> Multipliers:
    return multipliers_of(atom.in_evaluation())


def _takes_complex(atom: Elementwise) -> bool:
    return atom.function in _BY_NAME and _BY_NAME[atom.function].complex


CALLS: tuple[Operation, ...] = (
    *FUNCTIONS,
    nonlinear("frexp(input)", lower=lower_frexp),
    nonlinear("glu(input, dim=-1)", lower=lower_glu),
    nonlinear("prelu(input, weight)", lower=lower_prelu),
    nonlinear("rrelu(input, lower=0.125, upper=0.3333333333333333, training=False)", lower=lower_rrelu),
)
MODULES: Mapping[type[nn.Module], Build] = {
    **{each.module: build_module(each.name, each.options) for each in FUNCTIONS if each.module is not None},
    nn.GLU: build_glu,
    nn.PReLU: LearnedLeakyReLULayer,
    nn.RReLU: build_rrelu,
}
RULES: Mapping[type[nn.Module], Rule] = {
    SigmoidAtom: scaled(always(sigmoid_multiplier)),
    TanhAtom: scaled(always(tanh_multiplier)),
    ReLUAtom: scaled(always(relu_multiplier)),
    Elementwise: scaled(multipliers_of, complex=_takes_complex),
    RandomLeakyReLU: scaled(_random),
}
