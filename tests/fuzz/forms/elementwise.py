"""Functions of one and of two numbers: those that the tests restate, as they may be called."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.fuzz.forms.form import Form, forms
from tests.support.oracles.functions import FUNCTIONS, Restated
from tests.support.oracles.pairs import FIRST_SIGNED, RESTATED, SECOND_SIGNED, RestatedPair

# What is not called by the name that it is restated by.
_OTHER = {
    "powers": "torch.pow({base}, {v})",
    "polygamma": "torch.polygamma({n}, {v})",
    "frexp": "torch.frexp({v})[0]",
    "div": "torch.div({v}, {other}, rounding_mode='{rounding_mode}')",
}
_WIDE = -2.0


def _within(each: Restated) -> str:
    """Return an operand within the bounds of a function."""
    if math.isinf(each.low) or each.low <= _WIDE:
        return "{a}"
    if math.isinf(each.high):
        return "({a}.abs() + 0.3)"
    return f"({{a}}.sigmoid() * {each.high - each.low} + {each.low})"


def _calls(each: Restated) -> list[str]:
    operand = _within(each)
    if each.name in _OTHER:
        text = _OTHER[each.name]
        for name, value in each.options.items():
            text = text.replace(f"{{{name}}}", str(value))
        return [text.replace("{v}", operand)]
    options = ", ".join(f"{name}={value!r}" for name, value in each.options.items())
    found = []
    for space, prefix in ((torch, "torch"), (F, "F")):
        holder, last = (
            (getattr(space, "special", None), each.name[8:])
            if each.name.startswith("special.")
            else (space, each.name)
        )
        if hasattr(holder, last):
            found.append(f"{prefix}.{each.name}({', '.join(filter(None, (operand, options)))})")
    if hasattr(Tensor, each.name):
        found.append(f"{operand}.{each.name}({options})")
    if hasattr(Tensor, f"{each.name}_"):
        found.append(f"{operand}.clone().{each.name}_({options})")
    return found


def _pair(name: str, each: RestatedPair) -> str:
    signs = {FIRST_SIGNED: (True, False), SECOND_SIGNED: (False, True)}.get(each.signed, each.signed)
    operands = [
        f"{{{letter}}}" if signed else f"({{{letter}}}.abs() + {low + 0.2})"
        for letter, signed, low in zip("ab", signs, each.low, strict=True)
    ]
    if name.startswith(("div", "fmod", "remainder", "special.xlog1py")):
        operands[1] = "({b}.abs() + 0.3)"
    if each.of_second:
        operands[0] = f"torch.full_like({{b}}, {each.low[0] + 1.4})"
    options = [f"{key}={value!r}" for key, value in each.options.items()]
    return f"torch.{name.split()[0]}({', '.join((*operands, *options))})"


def _of_one() -> list[Form]:
    return [Form(f"[[{'|'.join(calls)}]]") for each in FUNCTIONS if (calls := _calls(each))]


#: Forms of functions of one number.
OF_ONE = _of_one()
#: Forms of functions of two numbers.
OF_TWO = forms(
    "{a} [[+|-|*]] {b}",
    "{a} / ({b}.abs() + 0.5)",
    "{b}.square().add({a}, alpha={f})",
    "{f} - {a}",
    "{f} / ({a}.square() + 1)",
    "{a} ** 2",
    "1.7 ** {a}",
    "({a} * {f}) % 0.7",
    *(_pair(name, each) for name, each in RESTATED.items()),
    "torch.addcmul({a}, {a}, {b}, value={f})",
    "torch.addcdiv({a}, {b}, {a}.exp() + 1)",
    "torch.lerp({a}, {b}, [[0.3|{a}.sigmoid()]])",
    "torch.float_power({a}.abs() + 0.5, {b})",
    "[[torch.max|torch.min|torch.minimum|torch.fmax]]({a}, {b})",
    "{a}.clamp(min={b})",
    "{a}.clone().[[add_|sub_|mul_|copy_]]({b})",
    "torch.rsub({a}, {b})",
    "{a}.neg().sub({b})",
)
