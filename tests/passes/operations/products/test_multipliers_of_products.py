"""Products of every kind by gradients at the mean, and what stays linear."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from passes.leaves import Atom, Mul
from passes.operations.operation import Kind
from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.records import multipliers_of
from passes.operations.pairwise.rule import corner_multipliers
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.contractions import explicit_equation
from passes.operations.products.records import CALLS
from passes.operations.products.rule import _by_transposition, bilinear_pull, product_multipliers
from rewriter.adapters.pairs import bound_rules
from tests.support.models.products import Model, N, drawn, shapley

OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "matmul": ({}, (2, 4), (4, 3)),
    "bmm": ({}, (2, 2, 4), (2, 4, 3)),
    "mm": ({}, (2, 4), (4, 3)),
    "mv": ({}, (2, 4), (4,)),
    "dot": ({}, (4,), (4,)),
    "inner": ({}, (2, 4), (3, 4)),
    "outer": ({}, (2,), (3,)),
    "kron": ({}, (2, 2), (2, 3)),
    "linalg.vecdot": ({"dim": 0}, (4, 2), (4, 2)),
    "cross": ({"dim": 0}, (3, 2), (3, 2)),
    "linalg.cross": ({}, (2, 3), (2, 3)),
    "tensordot": ({"dims": 1}, (2, 4), (4, 3)),
    "einsum": ({"equation": "...ij,kj->...k"}, (2, 3, 4), (5, 4)),
    "linear": ({}, (2, 4), (3, 4)),
    "conv1d": ({"stride": 2}, (2, 4, 7), (3, 4, 2)),
    "conv2d": ({"padding": 1}, (2, 4, 3, 3), (3, 4, 2, 2)),
    "conv3d": ({}, (2, 1, 3, 3, 3), (3, 1, 2, 2, 2)),
    "conv_transpose1d": ({}, (2, 4, 3), (4, 2, 2)),
    "conv_transpose2d": ({"groups": 2}, (2, 4, 3, 3), (4, 2, 2, 2)),
    "conv_transpose3d": ({}, (2, 1, 2, 2, 2), (1, 2, 2, 2, 2)),
}


# Of a product and something more.
SUMS = {"addmm", "addmv", "addr", "addbmm", "baddbmm", "addcmul"}


def test_every_product_is_tested() -> None:
    """Those that are one atom, under the name of what computes them."""
    made_of_others = {"bilinear", "chain_matmul", "linalg.multi_dot"}
    same = {"vdot": "dot", "ger": "outer", "rmatmul": "matmul", "mul": "mul"}
    products = {each.name for each in CALLS if each.kind is Kind.PRODUCT and each.lower is not None}
    assert products <= OPTIONS.keys() | made_of_others | same.keys() | SUMS


@pytest.mark.parametrize("function", OPTIONS)
@pytest.mark.parametrize("constant", [None, 0, 1])
def test_multipliers_are_gradients_at_the_mean_of_the_other(function: str, constant: int | None) -> None:
    options, *shapes = OPTIONS[function]
    atom = Bilinear(function, **options)
    x, x0 = (tuple(drawn(4, *shape) for shape in shapes) for _ in range(2))
    if constant is not None:
        # What is the same for all pairs comes once.
        x = tuple(each[:1] if k == constant else each for k, each in enumerate(x))
        x0 = tuple(x[k] if k == constant else each for k, each in enumerate(x0))
    d = drawn(2, 4, *atom(x[0][0], x[1][0]).shape)
    got = bilinear_pull(atom, x, x0, d[0], d[0], d)
    assert [each.shape for each in got] == [(2, 4, *shape) for shape in shapes]
    for k, pair in itertools.product(range(2), range(4)):
        sample, reference = (tuple(each[min(pair, len(each) - 1)] for each in side) for side in (x, x0))
        a, b = (((s + r) / 2).requires_grad_() for s, r in zip(sample, reference, strict=True))
        expected = torch.autograd.grad((atom(a, b) * d[k, pair]).sum(), (a, b))
        torch.testing.assert_close(tuple(each[k, pair] for each in got), expected, rtol=0, atol=1e-12)

        def game(
            with_a: bool,
            with_b: bool,
            sides: Any = (reference, sample),
            weights: Tensor = d[k, pair],
        ) -> Tensor:
            return (atom(sides[with_a][0], sides[with_b][1]) * weights).sum()

        shares = [(each[k, pair] * (s - r)).sum() for each, s, r in zip(got, sample, reference, strict=True)]
        torch.testing.assert_close(shares, shapley(game), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", ((2, 3), (3, 4))),
        ("...ij,...jk->...ik", ((5, 2, 3), (3, 4))),
        ("...i,...i->...", ((5, 1, 3), (2, 3))),
        ("bij,jb", ((5, 2, 3), (3, 5))),
        ("ii,ij->j", ((3, 3), (3, 4))),
        ("ij,k->k", ((2, 3), (4,))),
        ("ij,j->", ((2, 3), (3,))),
        ("i,ij->ij", ((1,), (2, 3))),
    ],
)
def test_einsum_written_out_equals_its_transposition(equation: str, shapes: Any) -> None:
    atom = Bilinear("einsum", equation=equation)
    a, b = (drawn(4, *shape) for shape in shapes)
    d = drawn(2, 4, *atom(a[0], b[0]).shape)
    got = bilinear_pull(atom, (a, b), (a, b), d[0], d[0], d)
    torch.testing.assert_close(got, _by_transposition(atom, a, b, d), rtol=0, atol=1e-12)
    terms, result = explicit_equation(equation, [len(shape) for shape in shapes])
    written = torch.einsum(f"{','.join(terms)}->{result}", a[0], b[0])
    torch.testing.assert_close(written, torch.einsum(equation, a[0], b[0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * m.w,
        lambda m, x: x @ m.w.T,
        lambda m, x: torch.einsum("bij,ij->bi", x, m.w),
        lambda m, x: x / m.w,
        lambda m, x: x * x.shape[0] * 2.0,
        lambda m, x: F.linear(x, m.w),
        lambda m, x: torch.lerp(x, x.neg(), 0.3),
        lambda m, x: torch.addmm(m.bias, m.form[0] * 1.0, m.w.T) + x.sum(),
        lambda m, x: x * (x > 0),
    ],
)
def test_product_with_a_constant_stays(function: Callable[[Any, Tensor], Tensor]) -> None:
    class One(Model):
        def __init__(self) -> None:
            super().__init__(lambda m, a, b: a)
            self.bias = nn.Parameter(drawn(4, 4))

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return function(self, x)

    model = One()
    decomposed = rewriter.decompose(model)
    assert not [module for module in decomposed.modules() if isinstance(module, Atom)]
    x = drawn(2, 4, 5)
    torch.testing.assert_close(decomposed(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (lambda x: x * x, lambda x, x0: x**2 - x0**2),
        (lambda x: x / x, lambda x, x0: 0 * x),
        (lambda x: 3 / x, lambda x, x0: 3 / x - 3 / x0),
        (lambda x: (x @ x.transpose(1, 2)).diagonal(dim1=1, dim2=2), None),
    ],
)
def test_both_operands_the_same(function: Any, answer: Any) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    decomposed = rewriter.decompose(One())
    x = (drawn(2 * N, 2, 3) + 5).requires_grad_()
    with bound_rules(decomposed):
        decomposed(x).sum().backward()
    assert x.grad is not None
    a, a0 = x.detach().chunk(2)
    share = x.grad[:N] * (a - a0)
    if answer is not None:
        torch.testing.assert_close(share, answer(a, a0), rtol=0, atol=1e-12)
    total = (function(a) - function(a0)).flatten(1).sum(1)
    torch.testing.assert_close(share.flatten(1).sum(1), total, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_mask_that_is_an_input(dtype: torch.dtype) -> None:
    x, mask = drawn(2 * N, 4).requires_grad_(), torch.rand(N, 4).round().repeat(2, 1).to(dtype)
    mul = Mul()
    with bound_rules(mul):
        mul(x, mask).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, mask.double(), rtol=0, atol=0)


@pytest.mark.parametrize("function", ["div", "pow", "atan2", "hypot"])
@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-12, 1e-7, 1e-5, 1e-2, 1.0, 100.0])
def test_corners_for_every_size_of_delta(function: str, gap: float) -> None:
    atom = Pairwise(function)
    a0, b0 = drawn(50).abs() + 0.5, drawn(50).abs() + 0.5
    a, b = a0 + gap, b0 - gap * 1e-3
    m_a, m_b = multipliers_of(atom)((a, b), (a0, b0), atom(a, b), atom(a0, b0))
    rise = m_a * (a - a0) + m_b * (b - b0)
    expected = atom(a, b) - atom(a0, b0)
    size = torch.maximum(atom(a, b), atom(a0, b0)).abs().clamp_min(1)
    # Values of that size are subtracted, which leaves some roundings of 2e-16.
    assert ((rise - expected).abs() / size).max() <= 4e-15
    if gap <= 1e-12:
        leaves = (a0.clone().requires_grad_(), b0.clone().requires_grad_())
        gradient = torch.autograd.grad(atom(*leaves).sum(), leaves)
        torch.testing.assert_close((m_a, m_b), gradient, rtol=1e-10, atol=1e-10)


def test_quotient_is_a_product_with_the_reciprocal() -> None:
    (a, b), (a0, b0) = ((drawn(20), drawn(20)) for _ in range(2))
    m_a, m_r = product_multipliers((a, 1 / b), (a0, 1 / b0), a / b, a0 / b0)
    got = multipliers_of(Pairwise("div"))((a, b), (a0, b0), a / b, a0 / b0)
    rescaled = m_r * (1 / b - 1 / b0) / (b - b0)
    torch.testing.assert_close(got, (m_a, rescaled), rtol=1e-10, atol=0)
    corners = corner_multipliers(torch.div, None, (a, b), (a0, b0), a / b, a0 / b0)
    torch.testing.assert_close(got, corners, rtol=1e-9, atol=1e-12)


def test_no_derivative_at_the_origin_of_hypot() -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    got = corner_multipliers(torch.hypot, None, (zero, zero), (zero, zero), zero, zero)
    assert got == (zero, zero)


def test_bilinear_layer_keeps_its_parameters() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.form = nn.Bilinear(3, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.form(x[..., :3], x[..., 3:])

    model = Two().double()
    decomposed = rewriter.decompose(model)
    assert dict(decomposed.named_parameters())["form.weight"] is model.form.weight
    x = drawn(2 * N, 7).requires_grad_()
    torch.testing.assert_close(decomposed(x), model(x), rtol=0, atol=1e-14)
    with bound_rules(decomposed):
        decomposed(x).sum().backward()
    assert x.grad is not None
    a, a0 = x.detach().chunk(2)
    share = (x.grad[:N] * (a - a0)).sum(1)
    torch.testing.assert_close(share, (model(a) - model(a0)).sum(1).detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.prod(1),
        lambda x: torch.prod(x, -1, keepdim=True),
        lambda x: torch.cumprod(x, 2),
        lambda x: x.cumprod(dim=-2),
    ],
)
def test_product_along_a_dimension(function: Callable[[Tensor], Tensor]) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    decomposed = rewriter.decompose(One())
    x = drawn(2 * N, 2, 3)
    # Zeros, in the sample, in the reference and in both.
    x[0, 0, 0] = x[N + 1, 1, 2] = x[2, 1, 1] = x[N + 2, 1, 1] = 0.0
    x.requires_grad_()
    weights = torch.randn_like(function(x)[:N].detach())
    with bound_rules(decomposed):
        (decomposed(x) * torch.cat([weights, weights])).sum().backward()
    assert x.grad is not None
    a, a0 = x.detach().chunk(2)
    rise = ((function(a) - function(a0)) * weights).flatten(1).sum(1)
    torch.testing.assert_close((x.grad[:N] * (a - a0)).flatten(1).sum(1), rise, rtol=0, atol=1e-13)
    if x.shape[1] == 2 and function(x).shape == (2 * N, 3):
        # Of two elements it is the game of two players.
        shares = (x.grad[:N] * (a - a0)).unbind(1)
        sides = ((a0[:, 0], a0[:, 1]), (a[:, 0], a[:, 1]))
        expected = shapley(lambda first, second: sides[first][0] * sides[second][1] * weights)
        torch.testing.assert_close(list(shares), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_distances_of_all_pairs_add_up(order: float) -> None:
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x[:, :2] * 0.5, p=order)

    model = One()
    decomposed = rewriter.decompose(model)
    x = drawn(2 * N, 3, 4).requires_grad_()
    torch.testing.assert_close(decomposed(x), model(x), rtol=1e-12, atol=1e-12)
    with bound_rules(decomposed):
        decomposed(x).sum().backward()
    assert x.grad is not None
    a, a0 = x.detach().chunk(2)
    rise = (model(a) - model(a0)).flatten(1).sum(1)
    torch.testing.assert_close((x.grad[:N] * (a - a0)).flatten(1).sum(1), rise, rtol=0, atol=1e-12)
