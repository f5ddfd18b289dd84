"""Functions of two operands. A new one is one line here, with its slopes if they have a closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from passes.operations.contract import Build, Lowering, Multipliers, Rule, scaled
from passes.operations.operation import DIVISOR, NO_RULE, Kind, Operation, described, nonlinear
from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.lowering import (
    lower_clamp,
    lower_clamp_max,
    lower_clamp_min,
    lower_div,
    lower_float_power,
    lower_floor_divide,
    lower_heaviside,
    lower_of_number,
    lower_pair,
    lower_pow,
    lower_second,
    reversed_pair,
)
from passes.operations.pairwise.rule import (
    Slopes,
    corner_multipliers,
    hypot_slopes,
    larger_multipliers,
    logaddexp_slopes,
    of_second,
    quotient_multipliers,
    smaller_multipliers,
)


@dataclass(frozen=True)
class Pair(Operation):
    """A function of two operands.

    Args:
        slopes: of the chords of each operand, in closed form; else they are found from the derivative.
        multipliers: the whole rule in closed form, if the function has one.
        complex: whether that is true of complex numbers, too.

    """

    slopes: Slopes | None = None
    multipliers: Multipliers | None = None
    complex: bool = False


def _pair(signature: str, *aliases: str, lower: Lowering | None = None, **own: Any) -> Pair:
    found = nonlinear(signature, *aliases, lower=None)
    return Pair(**(vars(found) | {"lower": lower or lower_pair(found.name)} | own))


def _quotient(signature: str, *aliases: str, lower: Lowering, fixed: str, **own: Any) -> Pair:
    """Describe what is linear in one operand and has the other one below the line."""
    return _pair(signature, *aliases, lower=lower, kind=Kind.LINEAR, fixed=(fixed,), because=DIVISOR, **own)


PAIRS: tuple[Pair, ...] = (
    _pair("atan2(input, other)", "arctan2"),
    _pair("clamp_max(input, max)", lower=lower_clamp_max, multipliers=smaller_multipliers),
    _pair("clamp_min(input, min)", lower=lower_clamp_min, multipliers=larger_multipliers),
    _pair("copysign(input, other)"),
    _pair("fmax(input, other)", multipliers=larger_multipliers),
    _pair("fmin(input, other)", multipliers=smaller_multipliers),
    _pair("fmod(input, other)", lower=lower_of_number("fmod")),
    _pair("hypot(input, other)", slopes=hypot_slopes),
    # Of these torch has a derivative in the second operand only.
    *(
        _pair(f"{name}(input, other)", *aliases, lower=lower_second(name), multipliers=of_second(name))
        for name, *aliases in (
            ("igamma", "special.gammainc"),
            ("igammac", "special.gammaincc"),
            ("special.zeta",),
        )
    ),
    _pair("logaddexp(input, other)", slopes=logaddexp_slopes),
    _pair("logaddexp2(input, other)"),
    _pair("maximum(input, other)", multipliers=larger_multipliers),
    _pair("minimum(input, other)", multipliers=smaller_multipliers),
    _pair("pow(input, exponent)", lower=lower_pow),
    _pair("remainder(input, other)", "mod", lower=lower_of_number("remainder")),
    _quotient(
        "div(input, other, rounding_mode=None)",
        *("divide", "true_divide", "truediv"),
        lower=lower_div,
        fixed="other",
        unless={"rounding_mode": NO_RULE},
        multipliers=quotient_multipliers,
        complex=True,
    ),
    _pair("xlogy(input, other)", kind=Kind.LINEAR, fixed=("other",), because=NO_RULE),
    _pair("special.xlog1py(input, other)", kind=Kind.LINEAR, fixed=("other",), because=NO_RULE),
)
_BY_NAME: Mapping[str, Pair] = {each.name: each for each in PAIRS}
_TWO = "(input, other)"

CALLS: tuple[Operation, ...] = (
    *PAIRS,
    nonlinear("clamp(input, min=None, max=None)", "clip", lower=lower_clamp),
    nonlinear("float_power(input, exponent)", lower=lower_float_power),
    nonlinear("heaviside(input, values)", lower=lower_heaviside),
    nonlinear("floor_divide(input, other)", "floordiv", lower=lower_floor_divide),
    nonlinear(f"rpow{_TWO}", lower=reversed_pair(lower_pow)),
    nonlinear(f"rmod{_TWO}", lower=reversed_pair(lower_pair("remainder"))),
    nonlinear(f"rfloordiv{_TWO}", lower=reversed_pair(lower_floor_divide)),
    described(
        f"rtruediv{_TWO}",
        Kind.LINEAR,
        "rdiv",
        fixed=("input",),
        because=DIVISOR,
        fresh=True,
        lower=reversed_pair(lower_div),
    ),
)


def multipliers_of(atom: Pairwise) -> Multipliers:
    """Return the rule of an atom."""
    known = _BY_NAME.get(atom.function)
    if known is not None and known.multipliers is not None and not atom.options:
        return known.multipliers
    return partial(corner_multipliers, atom.forward, known.slopes if known and not atom.options else None)


def _takes_complex(atom: Pairwise) -> bool:
    return atom.function in _BY_NAME and _BY_NAME[atom.function].complex


MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {Pairwise: scaled(multipliers_of, complex=_takes_complex)}
