"""What calls of functions of two operands become, at least one of which varies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.operations.contract import Lowering, Plain, Textbook, Varies, is_number, is_plain
from passes.operations.elementwise.atom import Elementwise
from passes.operations.pairwise.atom import AsTensor, Pairwise


class PairOfNumbers(nn.Module):
    """A function of two operands, one of which is the same for all inputs, and may be a number.

    Args:
        atom: the function.
        number: which of them, 0 or 1.

    """

    def __init__(self, atom: Pairwise, number: int) -> None:
        super().__init__()
        self.number = number
        self.as_tensor = AsTensor()
        self.atom = atom

    def forward(self, a: Any, b: Any) -> Tensor:
        """Return the function of both."""
        operands = (self.as_tensor(a, b), b) if self.number == 0 else (a, self.as_tensor(b, a))
        result: Tensor = self.atom(*operands)
        return result


def lower_pair(function: str) -> Lowering:
    """Return what lowers a function of two operands, in their order."""

    def lower(varies: Varies, input: Any, other: Any, **options: Any) -> Textbook | None:
        if not all(map(is_plain, options.values())):
            return None
        atom = Pairwise(function, **options)
        for number, operand in enumerate((input, other)):
            if not varies(operand):
                return PairOfNumbers(atom, number), (input, other)
        return atom, (input, other)

    return lower


def lower_second(function: str) -> Lowering:
    """Return what lowers a function of two operands, the first of which has to be the same for all inputs."""
    of_two = lower_pair(function)

    def lower(varies: Varies, input: Any, other: Any) -> Textbook | None:
        return None if varies(input) else of_two(varies, input, other)

    return lower


def reversed_pair(lower: Lowering) -> Lowering:
    """Return what lowers the method behind ``other ** input``, say."""

    def lower_reversed(varies: Varies, input: Any, other: Any) -> Textbook | None:
        return lower(varies, other, input)

    return lower_reversed


def lower_clamp_min(varies: Varies, input: Any, min: Any) -> Textbook | None:
    """Lower ``torch.clamp_min``."""
    return lower_clamp(varies, input, min)


def lower_clamp_max(varies: Varies, input: Any, max: Any) -> Textbook | None:
    """Lower ``torch.clamp_max``."""
    return lower_clamp(varies, input, None, max)


def lower_clamp(varies: Varies, input: Any, min: Any = None, max: Any = None) -> Textbook | None:
    """Lower ``torch.clamp``; the upper bound wins where it is the lower one."""
    if is_plain(min) and is_plain(max):
        return Elementwise("clamp", min=min, max=max), (input,)
    if max is None:
        return lower_pair("clamp_min")(varies, input, min)
    if min is None:
        return lower_pair("clamp_max")(varies, input, max)
    return Plain(_clamp), (input, min, max)


def _clamp(x: Any, low: Any, high: Any) -> Any:
    return torch.clamp_max(torch.clamp_min(x, low), high)


_NAMED_POWERS: Mapping[float, str] = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


def lower_pow(varies: Varies, input: Any, exponent: Any) -> Textbook | None:
    """Lower ``torch.pow``."""
    if is_number(input):
        return Elementwise("powers", base=input), (exponent,)
    if not is_number(exponent):
        return lower_pair("pow")(varies, input, exponent)
    if exponent == 1:
        return Plain(torch.clone), (input,)
    if exponent == 0:
        return Plain(torch.ones_like), (input,)
    if exponent in _NAMED_POWERS:
        return Elementwise(_NAMED_POWERS[exponent]), (input,)
    return Elementwise("pow", exponent=exponent), (input,)


def lower_float_power(varies: Varies, input: Any, exponent: Any) -> Textbook:
    """Lower ``torch.float_power``, which computes in float64."""
    if is_number(exponent):
        return Plain(partial(_wide_power, exponent=exponent)), (input,)
    if is_number(input):
        return Plain(partial(_wide_powers, base=input)), (exponent,)
    return Plain(partial(_wide_pair, varies(input), varies(exponent))), (input, exponent)


def _wide_power(base: Any, *, exponent: float) -> Any:
    return torch.pow(base.double(), exponent)


def _wide_powers(exponent: Any, *, base: float) -> Any:
    return torch.pow(base, exponent.double())


def _wide_pair(base_varies: bool, exponent_varies: bool, base: Any, exponent: Any) -> Any:
    # What does not vary may be a number; the other one's precision counts.
    return torch.pow(
        base.double() if base_varies else base, exponent.double() if exponent_varies else exponent
    )


def lower_div(varies: Varies, input: Any, other: Any, rounding_mode: Any = None) -> Textbook | None:
    """Lower ``torch.div``, whose divisor varies unless it rounds."""
    if rounding_mode is not None:
        if is_number(other):
            return Elementwise("div", other=other, rounding_mode=rounding_mode), (input,)
        return lower_pair("div")(varies, input, other, rounding_mode=rounding_mode)
    if varies(input):
        return Pairwise("div"), (input, other)
    return Plain(_over), (input, other)


def _over(numerator: Any, denominator: Any) -> Any:
    return numerator * torch.reciprocal(denominator)


def lower_floor_divide(varies: Varies, input: Any, other: Any) -> Textbook | None:
    """Lower ``torch.floor_divide``, of which torch has no derivative."""
    if is_number(other):
        return Elementwise("floor_divide", other=other), (input,)
    return lower_pair("div")(varies, input, other, rounding_mode="floor")


def lower_of_number(function: str) -> Lowering:
    """Return what lowers a function of two operands, the second of which is mostly a number."""
    of_two = lower_pair(function)

    def lower(varies: Varies, input: Any, other: Any) -> Textbook | None:
        if is_number(other):
            return Elementwise(function, other=other), (input,)
        return of_two(varies, input, other)

    return lower


def lower_heaviside(varies: Varies, input: Any, values: Any) -> Textbook:
    """Lower ``torch.heaviside``: values are taken where the other operand has no sign."""
    return Plain(_heaviside), (input, values)


def _heaviside(x: Any, values: Any) -> Any:
    sign = torch.sign(x)
    return (sign + 1) / 2 + (values - 0.5) * (1 - torch.abs(sign))
