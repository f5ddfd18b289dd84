"""Calls that multiply or divide: what they are made of where more than one operand varies.

A product with a constant is linear, and stays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from passes.leaves import Atom, Mul
from passes.operations.contract import Build, Lowering, Plain, Textbook, Varies
from passes.operations.pairwise.atom import Pairwise
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.contractions import equation_of_sublists, pairwise_equations
from passes.stand_in import StandIn, put_on_face


def _two(atom: Callable[..., Atom], *names: str) -> Lowering:
    """Make an atom of a function whose first two arguments both vary; the others are its options."""

    def lower(varies: Varies, *args: Any, **kwargs: Any) -> Textbook | None:
        given = dict(zip(names, args, strict=False)) | kwargs
        a, b = (given.pop(name, None) for name in names[:2])
        if given.get("out", 0) is None:
            del given["out"]
        plain = not any(isinstance(each, fx.Node) for each in given.values())
        if not (varies(a) and varies(b) and plain and given.keys() <= set(names)):
            return None
        return atom(**given), (a, b)

    return lower


def _product(function: str, *names: str) -> Lowering:
    return _two(partial(Bilinear, function), *names)


_mul = _two(Mul, "input", "other")
_matmul = _product("matmul", "input", "other")


def _div(varies: Varies, input: Any, other: Any, **options: Any) -> Textbook | None:
    if not varies(other) or options.get("rounding_mode") or "out" in options:
        return None
    if varies(input):
        return Pairwise("div"), (input, other)
    return Plain(lambda a, b: torch.reciprocal(b) * a), (input, other)


def _lerp(varies: Varies, input: Any, end: Any, weight: Any) -> Textbook | None:
    if not varies(weight) or not (varies(input) or varies(end)):
        return None
    return Plain(lambda a, b, share: a + share * (b - a)), (input, end, weight)


def _sum_with(product: Callable[[Any, Any], Any], *names: str) -> Lowering:
    """Lower what adds a product to its first argument: ``beta * input + alpha * product(a, b)``."""

    def lower(varies: Varies, input: Any, *args: Any, beta: Any = 1, alpha: Any = 1, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.keys() != set(names) or not all(map(varies, given.values())):
            return None
        operands = (input, *(given[name] for name in names), beta, alpha)
        if isinstance(beta, int | float) and beta == 0:
            # As in torch, what is multiplied by zero is not even looked at.
            return Plain(lambda i, a, b, beta, alpha: alpha * product(a, b)), operands
        return Plain(lambda i, a, b, beta, alpha: beta * i + alpha * product(a, b)), operands

    return lower


def _addcmul(varies: Varies, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Textbook | None:
    if not (varies(tensor1) and varies(tensor2)):
        return None
    return Plain(lambda i, a, b, value: i + value * (a * b)), (input, tensor1, tensor2, value)


def _addcdiv(varies: Varies, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Textbook | None:
    if not varies(tensor2):
        return None
    return Plain(lambda i, a, b, value: i + value * (a / b)), (input, tensor1, tensor2, value)


def _einsum(varies: Varies, *args: Any) -> Textbook | None:
    if isinstance(args[0], str):
        equation, operands = args[0], args[1:]
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = tuple(operands[0])
    else:
        equation, operands = equation_of_sublists(args)
    if sum(map(varies, operands)) < 2:
        return None
    if len(operands) == 2:
        return Bilinear("einsum", equation=equation), operands
    return Plain(partial(_contract, equation)), operands


def _contract(equation: str, first: Any, *others: Any) -> Any:
    for step, other in zip(pairwise_equations(equation), others, strict=True):
        first = torch.einsum(step, first, other)
    return first


def _cdist(varies: Varies, x1: Any, x2: Any, p: Any = 2.0, compute_mode: Any = None) -> Textbook | None:
    if isinstance(p, fx.Node):
        return None
    return Plain(lambda a, b: torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)), (
        x1,
        x2,
    )


def _multi_dot(varies: Varies, *tensors: Any) -> Textbook | None:
    operands = tuple(tensors[0]) if len(tensors) == 1 else tensors
    if sum(map(varies, operands)) < 2:
        return None
    return Plain(lambda *each: reduce(torch.matmul, each)), operands


def _bilinear(varies: Varies, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Textbook | None:
    if sum(map(varies, (input1, input2, weight))) < 2:
        return None
    form = partial(torch.einsum, "...i,oij,...j->...o")
    if bias is None:
        return Plain(lambda a, b, w: form(a, w, b)), (input1, input2, weight)
    return Plain(lambda a, b, w, c: form(a, w, b) + c), (input1, input2, weight, bias)


class BilinearFormAtoms(StandIn, nn.Bilinear):
    """An ``nn.Bilinear`` made of a linear map and a product."""

    product: Bilinear

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """Return what the original returns, (*, out_features)."""
        mapped = torch.einsum("...i,oij->...oj", input1, self.weight)
        result: Tensor = self.product(mapped, input2)
        return result if self.bias is None else result + self.bias


def _form(layer: nn.Bilinear) -> BilinearFormAtoms:
    stand_in = put_on_face(BilinearFormAtoms, layer, set(), "")
    stand_in.product = Bilinear("einsum", equation="...oj,...j->...o")
    return stand_in


MODULES: Mapping[type[nn.Module], Build] = {nn.Bilinear: _form}


def _linear(varies: Varies, input: Any, weight: Any, bias: Any = None) -> Textbook | None:
    if not (varies(input) and varies(weight)):
        return None
    if bias is None:
        return Bilinear("linear"), (input, weight)
    return Plain(lambda a, w, c: F.linear(a, w) + c), (input, weight, bias)


def _convolution(name: str, *names: str) -> Lowering:
    function: Callable[..., Tensor] = getattr(F, name)
    spread = (-1,) + (1,) * int(name[-2])

    def lower(
        varies: Varies, input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any
    ) -> Textbook | None:
        options = dict(zip(names, args, strict=False)) | kwargs
        if any(isinstance(each, fx.Node) for each in options.values()):
            return None
        if not (varies(input) and varies(weight)):
            return None
        if bias is None:
            return Bilinear(name, **options), (input, weight)
        return Plain(lambda x, w, c: function(x, w, None, **options) + c.reshape(spread)), (
            input,
            weight,
            bias,
        )

    return lower


_CONVOLUTION = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_pow = _two(partial(Pairwise, "pow"), "input", "exponent")
_atan2 = _two(partial(Pairwise, "atan2"), "input", "other")
_hypot = _two(partial(Pairwise, "hypot"), "input", "other")
_FUNCTIONS: Mapping[str, Lowering] = {
    "mul": _mul,
    "multiply": _mul,
    "matmul": _matmul,
    "bmm": _product("bmm", "input", "mat2"),
    "mm": _product("mm", "input", "mat2"),
    "mv": _product("mv", "input", "vec"),
    "dot": _product("dot", "input", "tensor"),
    "vdot": _product("dot", "input", "other"),
    "inner": _product("inner", "input", "other"),
    "outer": _product("outer", "input", "vec2"),
    "ger": _product("outer", "input", "vec2"),
    "kron": _product("kron", "input", "other"),
    "cross": _product("cross", "input", "other", "dim"),
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "pow": _pow,
    "atan2": _atan2,
    "arctan2": _atan2,
    "hypot": _hypot,
    "lerp": _lerp,
    "addmm": _sum_with(torch.mm, "mat1", "mat2"),
    "addmv": _sum_with(torch.mv, "mat", "vec"),
    "addr": _sum_with(torch.outer, "vec1", "vec2"),
    "baddbmm": _sum_with(torch.bmm, "batch1", "batch2"),
    "addbmm": _sum_with(lambda a, b: torch.bmm(a, b).sum(0), "batch1", "batch2"),
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
}

#: By function, and by name of the method.
CALLS: Mapping[Any, Lowering] = {
    **_FUNCTIONS,
    **{getattr(torch, name): lowering for name, lowering in _FUNCTIONS.items()},
    operator.mul: _mul,
    operator.matmul: _matmul,
    operator.truediv: _div,
    operator.pow: _pow,
    torch.einsum: _einsum,
    torch.tensordot: _product("tensordot", "a", "b", "dims"),
    torch.cdist: _cdist,
    torch.chain_matmul: _multi_dot,
    torch.linalg.multi_dot: _multi_dot,
    torch.linalg.matmul: _matmul,
    torch.linalg.vecdot: _product("vecdot", "x", "y", "dim"),
    torch.linalg.cross: _product("linalg_cross", "input", "other", "dim"),
    F.bilinear: _bilinear,
    F.linear: _linear,
    **{getattr(F, f"conv{k}d"): _convolution(f"conv{k}d", *_CONVOLUTION) for k in (1, 2, 3)},
    **{
        getattr(F, f"conv_transpose{k}d"): _convolution(f"conv_transpose{k}d", *_TRANSPOSED)
        for k in (1, 2, 3)
    },
}
