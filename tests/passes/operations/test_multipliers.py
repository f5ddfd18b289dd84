"""The table of rules, against restatements that share no code with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from passes.leaves import Atom, Mul, ReLUAtom, SigmoidAtom, TanhAtom
from passes.operations.elementwise.sigmoid_tanh_relu import (
    relu_multiplier,
    sigmoid_multiplier,
    tanh_multiplier,
)
from passes.operations.products.rule import product_multipliers
from passes.operations.table import RULES
from rewriter.adapters.pairs import bound_rules

ELEMENTWISE: dict[type[Atom], tuple[Callable[[float], float], Callable[[float], float]]] = {
    SigmoidAtom: (lambda x: 1 / (1 + math.exp(-x)), lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2),
    TanhAtom: (math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    ReLUAtom: (lambda x: max(x, 0.0), lambda x: float(x > 0)),
}
MULTIPLIERS = {SigmoidAtom: sigmoid_multiplier, TanhAtom: tanh_multiplier, ReLUAtom: relu_multiplier}
VALUES = st.floats(-30, 30)


def multiplier(atom: type[Atom], x: Tensor, x0: Tensor) -> Tensor:
    function = atom()
    (got,) = MULTIPLIERS[atom]((x,), (x0,), function(x), function(x0))
    return got


def test_every_atom_has_a_rule() -> None:
    # Atoms of users, of which tests define some, have theirs by register_rule.
    ours = {each for each in Atom.__subclasses__() if each.__module__.startswith("passes.")}
    assert ours == set(RULES)


@pytest.mark.parametrize("atom", ELEMENTWISE)
@given(x=VALUES, x0=VALUES)
def test_rescale_is_the_slope_of_the_chord(atom: type[Atom], x: float, x0: float) -> None:
    function, derivative = ELEMENTWISE[atom]
    got = multiplier(atom, torch.tensor(x, dtype=torch.float64), torch.tensor(x0, dtype=torch.float64)).item()
    if abs(x - x0) > 1e-3:
        expected = (function(x) - function(x0)) / (x - x0)
        # The restated quotient itself carries a rounding of 1e-16 / 1e-3.
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    elif atom is not ReLUAtom:
        # The chord's slope is the derivative in its middle, to second order in x - x0.
        assert got == pytest.approx(derivative((x + x0) / 2), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("atom", ELEMENTWISE)
@pytest.mark.parametrize("exponent", range(-300, 2, 4))
def test_rescale_is_complete_for_every_size_of_delta(atom: type[Atom], exponent: int) -> None:
    for start in (-3.0, -1e-9, 0.0, 1e-9, 0.7, 18.0):
        x0 = torch.full((1,), start, dtype=torch.float64)
        x = x0 + 10.0**exponent
        function = atom()
        error = multiplier(atom, x, x0) * (x - x0) - (function(x) - function(x0))
        # Two values of size up to 1, or x, are subtracted: that leaves their rounding, 2e-16, and no more.
        assert error.abs().item() <= 4e-16 * max(1.0, function(x).abs().item())


@pytest.mark.parametrize("atom", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rescale_at_no_delta_is_the_derivative(atom: type[Atom], dtype: torch.dtype) -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0], dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(atom()(x).sum(), x)
    got = multiplier(atom, x.detach(), x.detach())
    assert got.dtype is dtype
    torch.testing.assert_close(got, gradient, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def two_player_shapley(game: Callable[[frozenset[int]], Fraction]) -> list[Fraction]:
    """Average each player's marginal contribution over both orders, by brute force."""
    values = [Fraction(0), Fraction(0)]
    for order in itertools.permutations((0, 1)):
        present: frozenset[int] = frozenset()
        for player in order:
            values[player] += (game(present | {player}) - game(present)) / 2
            present |= {player}
    return values


@given(*[st.integers(-50, 50)] * 4)
def test_product_is_the_two_player_shapley_value(a: int, b: int, a0: int, b0: int) -> None:
    def game(present: frozenset[int]) -> Fraction:
        return Fraction((a if 0 in present else a0) * (b if 1 in present else b0))

    tensors = [torch.tensor([float(v)], dtype=torch.float64) for v in (a, b, a0, b0)]
    m_a, m_b = product_multipliers((tensors[0], tensors[1]), (tensors[2], tensors[3]), *tensors[:2])
    # Integers of this size are exact in float64. Deltas of zero occur, and divide nothing.
    assert [m_a.item() * (a - a0), m_b.item() * (b - b0)] == [float(v) for v in two_player_shapley(game)]


def attributions(function: Callable[..., Tensor], atoms: nn.Module, *pairs: Tensor) -> list[Tensor]:
    """Run with samples in the first half of the batch, references in the second."""
    inputs = [pair.clone().requires_grad_() for pair in pairs]
    with bound_rules(atoms):
        grads = torch.autograd.grad(function(*inputs).sum(), inputs)
    return [g.chunk(2)[0] * (p.chunk(2)[0] - p.chunk(2)[1]) for g, p in zip(grads, pairs, strict=True)]


@pytest.mark.parametrize(
    "shapes", [((6, 3), (6, 1)), ((6, 2, 3), (6, 1, 3)), ((6, 1), (6, 4)), ((6, 3), (6, 3))]
)
def test_product_of_broadcast_operands_is_complete(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    mul = Mul()
    phi_a, phi_b = attributions(mul, mul, a, b)
    assert phi_a.shape[1:] == a.shape[1:]
    y, y0 = (a * b).chunk(2)
    total = phi_a.flatten(1).sum(1) + phi_b.flatten(1).sum(1)
    torch.testing.assert_close(total, (y - y0).flatten(1).sum(1), rtol=0, atol=1e-13)


def test_operand_without_a_batch_is_a_constant() -> None:
    a, weight = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    mul = Mul()
    (phi,) = attributions(lambda x: mul(x, weight), mul, a)
    x, x0 = a.chunk(2)
    torch.testing.assert_close(phi, weight * (x - x0), rtol=0, atol=1e-15)


def test_square() -> None:
    a = torch.randn(6, 3, dtype=torch.float64)
    mul = Mul()
    (phi,) = attributions(lambda x: mul(x, x), mul, a)
    y, y0 = (a * a).chunk(2)
    torch.testing.assert_close(phi, y - y0, rtol=0, atol=1e-14)


def test_both_ways_to_write_a_gru_update_agree() -> None:
    z, n, h = (torch.randn(8, 3, dtype=torch.float64) for _ in range(3))
    mul = Mul()
    long = attributions(lambda z, n, h: mul(1 - z, n) + mul(z, h), mul, z, n, h)
    short = attributions(lambda z, n, h: n + mul(z, h - n), mul, z, n, h)
    for a, b in zip(long, short, strict=True):
        # The same bilinear expression, rounded in another order.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_an_atom_called_twice_keeps_its_calls_apart() -> None:
    tanh = TanhAtom()
    x = torch.randn(6, 3, dtype=torch.float64)
    (phi,) = attributions(lambda x: tanh(tanh(3 * x) + x), tanh, x)
    y, y0 = (torch.tanh(torch.tanh(3 * x) + x)).chunk(2)
    torch.testing.assert_close(phi, y - y0, rtol=0, atol=1e-14)


def test_odd_batch_is_refused() -> None:
    tanh = TanhAtom()
    with bound_rules(tanh), pytest.raises(RuntimeError, match=r"as many references .* got shape \(3, 2\)"):
        tanh(torch.randn(3, 2, requires_grad=True))


def test_rules_are_unbound_after_an_exception() -> None:
    tanh = TanhAtom()
    with pytest.raises(ZeroDivisionError), bound_rules(tanh):
        raise ZeroDivisionError
    assert not tanh._forward_hooks
