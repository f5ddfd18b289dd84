"""Calls and modules that multiply, and what they are made of where more than one operand varies.

A product with a constant is linear, and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom, Mul
from passes.operations.contract import (
    Build,
    Lowering,
    Plain,
    Rule,
    Textbook,
    Varies,
    always,
    holds_nodes,
    is_number,
    pulled,
    scaled,
)
from passes.operations.operation import (
    DIVISOR,
    PRODUCT,
    Kind,
    Operation,
    described,
    nonlinear,
    product,
)
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.contractions import equation_of_sublists, pairwise_equations
from passes.operations.products.rule import bilinear_pull, product_multipliers, running_product_pull
from passes.operations.products.running_products import RunningProduct
from passes.operations.products.sparse import lower_sparse_mm
from passes.operations.whole import is_whole, lower_whole
from passes.stand_in import StandIn, put_on_face


def _two(atom: Callable[..., Atom]) -> Lowering:
    """Make an atom of a function of two factors; its other arguments are the atom's options."""

    def lower(varies: Varies, /, **arguments: Any) -> Textbook | None:
        (_, a), (_, b), *others = arguments.items()
        options = dict(others)
        return None if holds_nodes(options) else (atom(**options), (a, b))

    return lower


def _of(function: str) -> Lowering:
    return _two(partial(Bilinear, function))


def _reversed_matmul(varies: Varies, input: Any, other: Any) -> Textbook:
    return Bilinear("matmul"), (other, input)


def _sum_with(of_two: Callable[[Any, Any], Any]) -> Lowering:
    """Lower what adds a product to its first argument: ``beta * input + alpha * product(a, b)``."""

    def with_input(i: Any, a: Any, b: Any, beta: Any, alpha: Any) -> Any:
        return beta * i + alpha * of_two(a, b)

    def without_input(_: Any, a: Any, b: Any, __: Any, alpha: Any) -> Any:
        return alpha * of_two(a, b)

    def lower(varies: Varies, /, beta: Any = 1, alpha: Any = 1, **operands: Any) -> Textbook:
        # As in torch, what is multiplied by zero is not even looked at.
        ignored = is_number(beta) and beta == 0
        return Plain(without_input if ignored else with_input), (*operands.values(), beta, alpha)

    return lower


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b).sum(0)


def _addcmul(varies: Varies, input: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> Textbook:
    return Plain(_add_product), (input, tensor1, tensor2, value)


def _add_product(i: Any, a: Any, b: Any, value: Any) -> Any:
    return i + value * (a * b)


def _addcdiv(varies: Varies, input: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> Textbook:
    return Plain(_add_quotient), (input, tensor1, tensor2, value)


def _add_quotient(i: Any, a: Any, b: Any, value: Any) -> Any:
    return i + value * (a / b)


def _lerp(varies: Varies, input: Any, end: Any, weight: Any) -> Textbook:
    return Plain(_between), (input, end, weight)


def _between(a: Any, b: Any, share: Any) -> Any:
    return a + share * (b - a)


def _tensordot(varies: Varies, a: Any, b: Any, dims_self: Any, dims_other: Any) -> Textbook | None:
    """Lower the function in C++, which takes the dimensions of each operand by themselves."""
    return _of("tensordot")(varies, a=a, b=b, dims=(dims_self, dims_other))


def _einsum(varies: Varies, equation: Any, operands: Any) -> Textbook:
    if not isinstance(equation, str):
        equation, operands = equation_of_sublists((equation, *operands))
    elif len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = operands[0]
    operands = tuple(operands)
    if len(operands) == 2:
        return Bilinear("einsum", equation=equation), operands
    return Plain(partial(_contract, equation)), operands


def _contract(equation: str, first: Any, *others: Any) -> Any:
    for step, other in zip(pairwise_equations(equation), others, strict=True):
        first = torch.einsum(step, first, other)
    return first


def _multi_dot(varies: Varies, tensors: Any) -> Textbook:
    one_list = len(tensors) == 1 and isinstance(tensors[0], list | tuple)
    return Plain(_chain), tuple(tensors[0] if one_list else tensors)


def _chain_matmul(varies: Varies, matrices: Any) -> Textbook:
    return Plain(_chain), tuple(matrices)


def _chain(*tensors: Any) -> Any:
    return reduce(torch.matmul, tensors)


def _bilinear(varies: Varies, input1: Any, input2: Any, weight: Any, bias: Any = None) -> Textbook:
    return Plain(_form), (input1, input2, weight, 0.0 if bias is None else bias)


def _form(a: Any, b: Any, weight: Any, bias: Any) -> Any:
    return torch.einsum("...i,oij,...j->...o", a, weight, b) + bias


def _linear(varies: Varies, input: Any, weight: Any, bias: Any = None) -> Textbook:
    if bias is None:
        return Bilinear("linear"), (input, weight)
    return Plain(_affine), (input, weight, bias)


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    return F.linear(x, weight) + bias


def _convolution(name: str) -> Lowering:
    function: Callable[..., Tensor] = getattr(F, name)
    spread = (-1,) + (1,) * int(name[-2])

    def lower(
        varies: Varies, /, input: Any, weight: Any, bias: Any = None, **options: Any
    ) -> Textbook | None:
        if holds_nodes(options):
            return None
        if bias is None:
            return Bilinear(name, **options), (input, weight)

        def with_bias(x: Any, w: Any, c: Any) -> Any:
            return function(x, w, None, **options) + c.reshape(spread)

        return Plain(with_bias), (input, weight, bias)

    return lower


def _cdist(varies: Varies, x1: Any, x2: Any, p: Any = 2.0, compute_mode: Any = None) -> Textbook | None:
    return None if holds_nodes(p) else (Plain(partial(_distances, p)), (x1, x2))


def _distances(p: float, a: Any, b: Any) -> Any:
    return torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, dim=-1)


def _ldexp(varies: Varies, input: Any, other: Any) -> Textbook:
    return Plain(_times_power_of_two), (input, other)


def _times_power_of_two(x: Any, exponent: Any) -> Any:
    return x * torch.exp2(exponent)


def _polar(varies: Varies, abs: Any, angle: Any) -> Textbook:
    return Plain(_complex_of), (abs, angle)


def _complex_of(length: Any, angle: Any) -> Any:
    return torch.complex(length * torch.cos(angle), length * torch.sin(angle))


def _trapezoid(cumulative: bool, varies: Varies, y: Any, x: Any = None, dim: Any = -1) -> Textbook | None:
    known = type(dim) is int and x is not None
    return (Plain(partial(_areas, cumulative, dim)), (y, x)) if known else None


def _areas(cumulative: bool, dim: int, y: Any, x: Any) -> Any:
    heights = torch.movedim(y, dim, -1)
    # Places of one dimension are those of all rows.
    places = x if isinstance(x, Tensor) and x.dim() == 1 else torch.movedim(x, dim, -1)
    areas = torch.diff(places) * (heights[..., 1:] + heights[..., :-1]) / 2
    return torch.movedim(torch.cumsum(areas, -1), -1, dim) if cumulative else areas.sum(-1)


def _softmax_backward(
    varies: Varies, grad_output: Any, output: Any, dim: Any, input_dtype: Any = None
) -> Textbook | None:
    return (Plain(partial(_through_softmax, dim)), (grad_output, output)) if type(dim) is int else None


def _through_softmax(dim: int, gradient: Any, output: Any) -> Any:
    through = gradient * output
    return through - output * through.sum(dim, keepdim=True)


def _prod(
    varies: Varies, input: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> Textbook | None:
    if dtype is not None:
        known = isinstance(dtype, torch.dtype) and not holds_nodes(dim, keepdim)
        given = {} if is_whole(dim) else {"dim": dim, "keepdim": keepdim}
        return (Plain(partial(_prod_as, dtype, given)), (input,)) if known else None
    if is_whole(dim):
        return lower_whole(partial(torch.prod, dim=-1), input, keepdim=keepdim)
    known = type(dim) is int and isinstance(keepdim, bool)
    return (RunningProduct(dim, keepdim=keepdim), (input,)) if known else None


def _prod_as(dtype: torch.dtype, options: Mapping[str, Any], x: Any) -> Any:
    return torch.prod(x.to(dtype), **options)


def _cumprod(varies: Varies, input: Any, dim: Any, dtype: Any = None) -> Textbook | None:
    if type(dim) is not int or not (dtype is None or isinstance(dtype, torch.dtype)):
        return None
    if dtype is not None:
        return Plain(partial(_cumprod_as, dtype, dim)), (input,)
    return RunningProduct(dim, cumulative=True), (input,)


def _cumprod_as(dtype: torch.dtype, dim: int, x: Any) -> Any:
    return torch.cumprod(x.to(dtype), dim)


class BilinearFormAtoms(StandIn, nn.Bilinear):
    """An ``nn.Bilinear`` made of a linear map and a product."""

    product: Bilinear

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """Return what the original returns, (*, out_features)."""
        mapped = torch.einsum("...i,oij->...oj", input1, self.weight)
        result: Tensor = self.product(mapped, input2)
        return result if self.bias is None else result + self.bias


def _bilinear_module(layer: nn.Bilinear) -> nn.Module:
    stand_in = put_on_face(BilinearFormAtoms, layer, set(), "")
    stand_in.product = Bilinear("einsum", equation="...oj,...j->...o")
    return stand_in


def _of_convolutions(space: int) -> tuple[Operation, ...]:
    plain = f"conv{space}d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)"
    transposed = (
        f"conv_transpose{space}d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,"
        " dilation=1)"
    )
    factors = ("input", "weight")
    return (
        product(plain, lower=_convolution(f"conv{space}d"), factors=factors),
        product(transposed, lower=_convolution(f"conv_transpose{space}d"), factors=factors),
    )


_TWO_FIRST = ("input", "weight")

CALLS: tuple[Operation, ...] = (
    product("mul(input, other)", "multiply", "rmul", lower=_two(Mul)),
    product("matmul(input, other)", "linalg.matmul", lower=_of("matmul")),
    product("rmatmul(input, other)", lower=_reversed_matmul),
    product("bmm(input, mat2)", lower=_of("bmm")),
    product("mm(input, mat2)", lower=_of("mm")),
    product("mv(input, vec)", lower=_of("mv")),
    product("dot(input, tensor)", lower=_of("dot")),
    product("vdot(input, other)", lower=_of("dot")),
    product("inner(input, other)", lower=_of("inner")),
    product("outer(input, vec2)", "ger", lower=_of("outer")),
    product("kron(input, other)", lower=_of("kron")),
    product("cross(input, other, dim=None)", lower=_of("cross"), factors=("input", "other")),
    product("linalg.cross(input, other, *, dim=-1)", lower=_of("linalg.cross"), factors=("input", "other")),
    product("linalg.vecdot(x, y, *, dim=-1)", lower=_of("linalg.vecdot"), factors=("x", "y")),
    product(
        "tensordot(a, b, dims=2)",
        lower=_of("tensordot"),
        lower_builtin=_tensordot,
        factors=("a", "b"),
        renamed={"other": "b"},
    ),
    # One operand alone is perhaps only seen in another order, or returned as it is.
    product(
        "einsum(equation, *operands)",
        lower=_einsum,
        factors=("equation", "operands"),
        renamed={"tensors": "operands"},
        fresh=False,
    ),
    product("chain_matmul(*matrices)", lower=_chain_matmul, factors=("matrices",)),
    product("linalg.multi_dot(*tensors)", lower=_multi_dot, factors=("tensors",)),
    product("linear(input, weight, bias=None)", lower=_linear, factors=_TWO_FIRST),
    *_of_convolutions(1),
    *_of_convolutions(2),
    *_of_convolutions(3),
    described("convolution(input, weight, bias=None)", Kind.PRODUCT, factors=_TWO_FIRST, fresh=True),
    described("conv_tbc(input, weight, bias, pad=0)", Kind.PRODUCT, factors=_TWO_FIRST, fresh=True),
    product(
        "bilinear(input1, input2, weight, bias=None)",
        lower=_bilinear,
        factors=("input1", "input2", "weight"),
    ),
    product(
        "addmm(input, mat1, mat2, *, beta=1, alpha=1)", lower=_sum_with(torch.mm), factors=("mat1", "mat2")
    ),
    product("addmv(input, mat, vec, *, beta=1, alpha=1)", lower=_sum_with(torch.mv), factors=("mat", "vec")),
    product(
        "addr(input, vec1, vec2, *, beta=1, alpha=1)", lower=_sum_with(torch.outer), factors=("vec1", "vec2")
    ),
    product(
        "baddbmm(input, batch1, batch2, *, beta=1, alpha=1)",
        lower=_sum_with(torch.bmm),
        factors=("batch1", "batch2"),
    ),
    product(
        "addbmm(input, batch1, batch2, *, beta=1, alpha=1)",
        lower=_sum_with(_sum_of_products),
        factors=("batch1", "batch2"),
    ),
    product("addcmul(input, tensor1, tensor2, *, value=1)", lower=_addcmul, factors=("tensor1", "tensor2")),
    described(
        "addcdiv(input, tensor1, tensor2, *, value=1)",
        Kind.LINEAR,
        fixed=("tensor2",),
        because=DIVISOR,
        lower=_addcdiv,
        fresh=True,
    ),
    described("lerp(input, end, weight)", Kind.LINEAR, fixed=("weight",), lower=_lerp, fresh=True),
    # Always: torch's own gradient is zero where a whole exponent is negative.
    nonlinear("ldexp(input, other)", lower=_ldexp, fresh=True),
    nonlinear("polar(abs, angle)", lower=_polar),
    *(
        described(
            f"{name}(y, x=None)",
            Kind.LINEAR,
            *aliases,
            fixed=("x",),
            because=PRODUCT,
            lower=partial(_trapezoid, cumulative),
            fresh=True,
        )
        for name, aliases, cumulative in (
            ("trapezoid", ("trapz",), False),
            ("cumulative_trapezoid", (), True),
        )
    ),
    nonlinear("_softmax_backward_data(grad_output, output, dim, input_dtype=None)", lower=_softmax_backward),
    nonlinear("sparse.mm(sparse, dense, reduce=None)", "_sparse_mm", lower=lower_sparse_mm, fresh=False),
    nonlinear("cdist(x1, x2, p=2.0, compute_mode=None)", lower=_cdist),
    nonlinear("prod(input, dim=None, keepdim=False)", lower=_prod),
    nonlinear("cumprod(input, dim)", lower=_cumprod),
)
MODULES: Mapping[type[nn.Module], Build] = {nn.Bilinear: _bilinear_module}
RULES: Mapping[type[nn.Module], Rule] = {
    Mul: scaled(always(product_multipliers), complex=True),
    Bilinear: pulled(bilinear_pull, complex=True),
    RunningProduct: pulled(running_product_pull),
}
