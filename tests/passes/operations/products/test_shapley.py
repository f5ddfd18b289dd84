"""Products compute what torch computes, and share by Shapley values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import rewriter
from passes.leaves import Atom
from rewriter.adapters.pairs import bound_rules
from tests.support.models.products import Function, Model, N, drawn, shapley

# Function, shapes of its operands without the batch.
BATCHED: dict[str, tuple[Function, tuple[int, ...], tuple[int, ...]]] = {
    "*": (lambda m, a, b: a * b, (4,), (4,)),
    "mul broadcast": (lambda m, a, b: torch.mul(a, b), (3, 1), (1, 4)),
    "mul method": (lambda m, a, b: a.mul(b), (4,), (1,)),
    "multiply": (lambda m, a, b: torch.multiply(a, other=b), (4,), (4,)),
    "@": (lambda m, a, b: a @ b, (2, 4), (4, 3)),
    "matmul heads": (lambda m, a, b: torch.matmul(a, b), (2, 3, 4), (2, 4, 5)),
    "matmul broadcast": (lambda m, a, b: a.matmul(b), (2, 3, 4), (1, 4, 5)),
    "bmm": (lambda m, a, b: torch.bmm(a, b), (2, 4), (4, 3)),
    "bmm method": (lambda m, a, b: a.bmm(mat2=b), (2, 4), (4, 3)),
    "baddbmm": (lambda m, a, b: torch.baddbmm(m.cube, a, b, beta=0.5, alpha=2), (4, 3), (3, 5)),
    "baddbmm method": (lambda m, a, b: a.baddbmm(a.transpose(1, 2), b, alpha=3), (4, 4), (4, 4)),
    "addcmul": (lambda m, a, b: torch.addcmul(a, a, b, value=2), (4,), (4,)),
    "addcdiv": (lambda m, a, b: torch.addcdiv(a, a, b + 9, value=0.5), (4,), (4,)),
    "einsum": (lambda m, a, b: torch.einsum("bij,bjk->bik", a, b), (2, 4), (4, 3)),
    "einsum list": (lambda m, a, b: torch.einsum("b i, b i -> b", [a, b]), (4,), (4,)),
    "einsum dots": (lambda m, a, b: torch.einsum("...i,...i->...", a, b), (2, 4), (1, 4)),
    "einsum sublists": (lambda m, a, b: torch.einsum(a, [0, 1, 2], b, [0, 2], [0, 1]), (2, 4), (4,)),
    "einsum sum of one": (lambda m, a, b: torch.einsum("bij,bk->bk", a, b), (2, 4), (3,)),
    "einsum diagonal": (lambda m, a, b: torch.einsum("bii,bi->bi", a, b), (4, 4), (4,)),
    "einsum weight": (lambda m, a, b: torch.einsum("bi,ij,bj->b", a, m.w, b), (4,), (5,)),
    "einsum weight first": (lambda m, a, b: torch.einsum("ij,bi,bj->bj", m.w, a, b), (4,), (5,)),
    "linalg.vecdot": (lambda m, a, b: torch.linalg.vecdot(a, b, dim=1), (4, 2), (4, 2)),
    "cross": (lambda m, a, b: torch.cross(a, b, dim=1), (3, 2), (3, 2)),
    "linalg.cross": (lambda m, a, b: torch.linalg.cross(a, b), (2, 3), (2, 3)),
    "bilinear": (lambda m, a, b: F.bilinear(a, b, m.form, m.bias), (3, 4), (3, 5)),
    "lerp": (lambda m, a, b: torch.lerp(m.w[0], b, a), (5,), (5,)),
    "/": (lambda m, a, b: a / b, (4,), (4,)),
    "div broadcast": (lambda m, a, b: torch.div(a, b), (3, 4), (3, 1)),
    "true_divide": (lambda m, a, b: a.true_divide(b), (4,), (4,)),
    "**": (lambda m, a, b: a.abs() ** b, (4,), (4,)),
    "pow": (lambda m, a, b: torch.pow(a.abs(), b), (4,), (1,)),
    "atan2": (lambda m, a, b: torch.atan2(a, b), (4,), (4,)),
    "arctan2": (lambda m, a, b: a.arctan2(b), (4,), (4,)),
    "hypot": (lambda m, a, b: torch.hypot(a, other=b), (4,), (4,)),
}


UNBATCHED: dict[str, tuple[Function, tuple[int, ...], tuple[int, ...]]] = {
    "einsum implicit": (lambda m, a, b: torch.einsum("jb,ja", a, b), (2, 4), (2, 3)),
    "mm": (lambda m, a, b: torch.mm(a, b), (2, 4), (4, 3)),
    "mv": (lambda m, a, b: a.mv(b), (2, 4), (4,)),
    "vector @": (lambda m, a, b: a @ b, (4,), (4, 3)),
    "vector @ many": (lambda m, a, b: a @ b, (4,), (2, 4, 3)),
    "many @ vector": (lambda m, a, b: a @ b, (2, 3, 4), (4,)),
    "dot": (lambda m, a, b: torch.dot(a, b), (4,), (4,)),
    "vdot": (lambda m, a, b: torch.vdot(a, b), (4,), (4,)),
    "inner": (lambda m, a, b: torch.inner(a, b), (2, 4), (3, 4)),
    "outer": (lambda m, a, b: torch.outer(a, b), (4,), (3,)),
    "ger": (lambda m, a, b: a.ger(b), (4,), (3,)),
    "kron": (lambda m, a, b: torch.kron(a, b), (2, 2), (3, 2)),
    "tensordot": (lambda m, a, b: torch.tensordot(a, b, dims=2), (3, 4, 5), (4, 5, 2)),
    "tensordot dims": (lambda m, a, b: torch.tensordot(a, b, ([1], [0])), (3, 4), (4, 2)),
    "addmm": (lambda m, a, b: torch.addmm(a, a, b, beta=2, alpha=3), (4, 4), (4, 4)),
    "addmm beta 0": (lambda m, a, b: torch.addmm(m.w / 0, a, b, beta=0), (4, 3), (3, 5)),
    "addmv": (lambda m, a, b: b.addmv(a, b), (4, 4), (4,)),
    "addr": (lambda m, a, b: torch.addr(m.w, a, b), (4,), (5,)),
    "addbmm": (lambda m, a, b: torch.addbmm(m.w, a, b), (2, 4, 3), (2, 3, 5)),
    "multi_dot": (lambda m, a, b: torch.linalg.multi_dot([a, m.w, b]), (3, 4), (5, 2)),
    "linear": (lambda m, a, b: F.linear(a, b), (3, 4), (2, 4)),
    "linear bias": (lambda m, a, b: F.linear(a, b, m.bias), (3, 4), (2, 4)),
    "conv1d": (lambda m, a, b: F.conv1d(a, b, m.bias, 2, padding=1), (3, 4, 6), (2, 4, 3)),
    "conv2d": (lambda m, a, b: F.conv2d(a, b, dilation=2), (1, 4, 6, 6), (2, 4, 2, 2)),
    "conv_transpose1d": (lambda m, a, b: F.conv_transpose1d(a, b, m.bias, 2), (3, 4, 6), (4, 2, 3)),
    "three": (lambda m, a, b: torch.einsum("bi,bj,bi->bij", a, b, a), (3, 4), (3, 5)),
}


def lowered(function: Function) -> tuple[Model, nn.Module]:
    model = Model(function)
    decomposed = rewriter.decompose(model)
    assert isinstance(decomposed, fx.GraphModule)
    assert any(isinstance(module, Atom) for module in decomposed.modules())
    assert decomposed.report.operations
    return model, decomposed


@pytest.mark.parametrize("kind", [*BATCHED, *UNBATCHED])
def test_lowered_products_are_torchs(kind: str) -> None:
    function, *shapes = (BATCHED | UNBATCHED)[kind]
    lead = (2 * N,) if kind in BATCHED else ()
    model, decomposed = lowered(function)
    inputs = [drawn(*lead, *shape).requires_grad_() for shape in shapes]
    expected, got = model(*inputs), decomposed(*inputs)
    # The same sums, some in another order.
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    weights = torch.randn_like(expected)
    both = [torch.autograd.grad((each * weights).sum(), inputs) for each in (got, expected)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", BATCHED)
def test_shares_are_the_two_player_shapley_values(kind: str) -> None:
    function, *shapes = BATCHED[kind]
    model, decomposed = lowered(function)
    a, b = (drawn(2 * N, *shape).requires_grad_() for shape in shapes)
    weights = torch.randn_like(model(a, b)[:N].detach())
    with bound_rules(decomposed):
        (decomposed(a, b) * torch.cat([weights, weights])).sum().backward()
    shares = []
    for each in (a, b):
        assert each.grad is not None
        x, x0 = each.detach().chunk(2)
        # Both halves carry the multipliers of the pair.
        torch.testing.assert_close(*each.grad.chunk(2), rtol=0, atol=1e-12)
        shares.append((each.grad[:N] * (x - x0)).flatten(1).sum(1))

    def game(with_a: bool, with_b: bool) -> Tensor:
        taken = [each.detach().chunk(2)[0 if own else 1] for each, own in ((a, with_a), (b, with_b))]
        # The model's constants come for a whole batch.
        y = model(*(torch.cat([each, each]) for each in taken)).detach()
        return (y[:N] * weights).reshape(N, -1).sum(1)

    if kind in ("baddbmm method", "addcdiv", "**", "pow"):
        # An operand is used twice, or goes through more: the shares are those of no single game.
        torch.testing.assert_close(sum(shares), game(True, True) - game(False, False), rtol=0, atol=1e-11)
        return
    if kind == "addcmul":
        # A sum of two games, each with its own Shapley values, which add up.
        torch.testing.assert_close(sum(shares), sum(shapley(game)), rtol=0, atol=1e-11)
    torch.testing.assert_close(shares, shapley(game), rtol=0, atol=1e-11)
