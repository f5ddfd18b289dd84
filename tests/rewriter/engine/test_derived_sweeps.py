"""Sweeps of cells that nobody wrote a sweep for, against DeepLIFT's formulas number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.leaves import Mul, SigmoidAtom, TanhAtom
from passes.operations.elementwise.atom import Elementwise
from passes.recurrent.recurrence import Recurrence
from rewriter import DeepExplainer
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.tried_out import NotElementwiseError
from tests.support.oracles.deeplift import Array, Pair, contributions

State = tuple[Any, ...]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


class CoupledCell(nn.Module):
    """Forget and input gates are one (Greff et al. 2017, CIFG); both parts of the gates are added first."""

    states, gates = 2, "fgo"

    def __init__(self) -> None:
        super().__init__()
        self.f, self.o, self.g, self.squash = SigmoidAtom(), SigmoidAtom(), TanhAtom(), TanhAtom()
        self.keep, self.take, self.out = Mul(), Mul(), Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor, c: Tensor) -> State:
        f, g, o = (x + h_gates).chunk(3, -1)
        f = self.f(f)
        c = self.keep(f, c) + self.take(1 - f, self.g(g))
        return self.out(self.o(o), self.squash(c)), c


def coupled(x: Pair, h_gates: Pair, h: Pair, c: Pair) -> State:
    f, g, o = (x + h_gates).chunk(3)
    f = f.of(sigmoid)
    c = f * c + (1 - f) * g.of(np.tanh)
    return o.of(sigmoid) * c.of(np.tanh), c


class TwiceUsedGateCell(nn.Module):
    """One slot of the gates feeds two atoms, the middle one none, and the state decays by itself."""

    states, gates = 1, "abc"

    def __init__(self) -> None:
        super().__init__()
        self.open, self.value, self.grow = SigmoidAtom(), TanhAtom(), Elementwise("softplus")
        self.both = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        a, _, c = (x + h_gates).chunk(3, -1)
        return (self.both(self.open(a), self.value(a)) + h * 0.5 + self.grow(c),)


def twice_used(x: Pair, h_gates: Pair, h: Pair) -> State:
    a, _, c = (x + h_gates).chunk(3)
    return (a.of(sigmoid) * a.of(np.tanh) + h * 0.5 + c.of(lambda v: np.log1p(np.exp(v))),)


class SquashedStateCell(nn.Module):
    """Atoms on the old states alone, products of states, and a gate that adds to a state without an atom."""

    states, gates = 2, "ab"

    def __init__(self) -> None:
        super().__init__()
        self.squash_h, self.squash_c, self.gate = TanhAtom(), Elementwise("exp"), SigmoidAtom()
        self.states_mul, self.gate_mul = Mul(), Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor, c: Tensor) -> State:
        x_a, x_b = x.chunk(2, -1)
        h_a, h_b = h_gates.chunk(2, -1)
        mixed = self.states_mul(self.squash_h(h), c)
        return self.gate_mul(self.gate(x_a + h_a * 2), mixed) + x_b, self.squash_c(c * -1) * 0.1 + h_b


def squashed_state(x: Pair, h_gates: Pair, h: Pair, c: Pair) -> State:
    (x_a, x_b), (h_a, h_b) = x.chunk(2), h_gates.chunk(2)
    mixed = h.of(np.tanh) * c
    return (x_a + h_a * 2).of(sigmoid) * mixed + x_b, (c * -1).of(np.exp) * 0.1 + h_b


class FadingCell(nn.Module):
    """A state that no gate reaches, one that is made anew at each step, and a last slot that nobody takes."""

    states, gates = 3, "abz"

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.fade, self.out = SigmoidAtom(), TanhAtom(), TanhAtom(), Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor, c: Tensor, e: Tensor) -> State:
        a, b, _ = (x + h_gates).chunk(3, -1)
        c, e = self.fade(c) * 0.5, self.value(b)
        return self.out(self.gate(a), c + e), c, e


def fading(x: Pair, h_gates: Pair, h: Pair, c: Pair, e: Pair) -> State:
    a, b, _ = (x + h_gates).chunk(3)
    c, e = c.of(np.tanh) * 0.5, b.of(np.tanh)
    return a.of(sigmoid) * (c + e), c, e


class MixingCell(nn.Module):
    """Elements of the state change places, which no elementwise sweep can follow."""

    states, gates = 1, "a"

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = TanhAtom(), Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.out(self.value(x + h_gates), h.flip(-1)),)


def mixing(x: Pair, h_gates: Pair, h: Pair) -> State:
    return ((x + h_gates).of(np.tanh) * h.through(np.eye(SIZE)[::-1], np.zeros(SIZE)),)


class TurnedGatesCell(MixingCell):
    """A piece of the gates is taken in another order."""

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.out(self.value((x + h_gates).flip(-1)), h),)


def turned_gates(x: Pair, h_gates: Pair, h: Pair) -> State:
    return ((x + h_gates).through(np.eye(SIZE)[::-1], np.zeros(SIZE)).of(np.tanh) * h,)


class LinearCell(nn.Module):
    """No atom at all."""

    states, gates = 1, "a"

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (x + h_gates * 0.5,)


def linear(x: Pair, h_gates: Pair, h: Pair) -> State:
    return (x + h_gates * 0.5,)


class InterpolatingCell(MixingCell):
    """What torch calls linear is not where its weight varies."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = SigmoidAtom()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (torch.lerp(h, self.value(x), self.gate(h_gates)),)


def interpolating(x: Pair, h_gates: Pair, h: Pair) -> State:
    return (h + h_gates.of(sigmoid) * (x.of(np.tanh) + h * -1),)


class RoundingCell(MixingCell):
    """A division that is linear but for its option."""

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.value(x + h_gates) + torch.div(h * 8, 2, rounding_mode="floor"),)


def rounding(x: Pair, h_gates: Pair, h: Pair) -> State:
    return ((x + h_gates).of(np.tanh) + (h * 8).of(lambda v: np.floor(v / 2)),)


class SummedProductCell(MixingCell):
    """A product of what varies inside a sum, without an atom, its operands by keyword."""

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (torch.addcmul(h, tensor1=self.value(x), tensor2=torch.sigmoid(h_gates), value=0.5),)


def summed_product(x: Pair, h_gates: Pair, h: Pair) -> State:
    return (h + x.of(np.tanh) * h_gates.of(sigmoid) * 0.5,)


MEAN, SCALE = np.array([0.5, -0.25]), np.array([2.0, 0.75])


class CentredCell(MixingCell):
    """Buffers are called as operations are: one is added to what varies."""

    mean: Tensor
    exp: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("exp", torch.tensor(SCALE))

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.value(x + h_gates) + (self.mean * 2 + h),)


def centred(x: Pair, h_gates: Pair, h: Pair) -> State:
    return ((x + h_gates).of(np.tanh) + (h + 2 * MEAN),)


class ScaledCell(CentredCell):
    """Each element is taken times another number."""

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.value(x + h_gates) + h * self.exp,)


def scaled(x: Pair, h_gates: Pair, h: Pair) -> State:
    return ((x + h_gates).of(np.tanh) + h.through(np.diag(SCALE), np.zeros(SIZE)),)


CELLS: dict[str, tuple[Callable[[], nn.Module], Callable[..., State]]] = {
    "coupled": (CoupledCell, coupled),
    "a gate used twice": (TwiceUsedGateCell, twice_used),
    "atoms on states": (SquashedStateCell, squashed_state),
    "fading": (FadingCell, fading),
    "mixing": (MixingCell, mixing),
    "turned gates": (TurnedGatesCell, turned_gates),
    "linear": (LinearCell, linear),
    "interpolating": (InterpolatingCell, interpolating),
    "rounding": (RoundingCell, rounding),
    "a product in a sum": (SummedProductCell, summed_product),
    "a buffer in a sum": (CentredCell, centred),
    "a buffer in a product": (ScaledCell, scaled),
}
SIZE = 2


class Layer(nn.Module):
    """A recurrence over a cell, whose first states come from the first row of the input."""

    def __init__(self, cell: nn.Module, reverse: bool) -> None:
        super().__init__()
        width = len(str(cell.gates)) * SIZE
        self.input = nn.Linear(3, width)
        self.recurrence = Recurrence(nn.Linear(SIZE, width), cell, reverse=reverse, name="layer")
        self.start = nn.Linear(3, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.start(x[:, 0]))
        result: Tensor = self.recurrence(self.input(x.transpose(0, 1)), None, *[h] * self.recurrence.states)[
            1
        ]
        return result


def restated(layer: Layer, step: Callable[..., State], x: Array, x0: Array, output: int) -> Array:
    """Explain one pair: (T, I)."""

    def weights(name: str) -> tuple[Array, Array]:
        linear = layer.get_submodule(name)
        return linear.weight.detach().numpy(), linear.bias.detach().numpy()

    rows = [Pair(a, b) for a, b in zip(x, x0, strict=True)]
    h = rows[0].through(*weights("start")).of(np.tanh)
    state: State = (h,) * layer.recurrence.states
    for row in reversed(rows) if layer.recurrence.reverse else rows:
        hidden = state[0].through(*weights("recurrence.hidden"))
        state = step(row.through(*weights("input")), hidden, *state)
    return np.stack(contributions(state[0], output, rows))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_every_pair(name: str, reverse: bool) -> None:
    make, step = CELLS[name]
    layer = Layer(make(), reverse).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    values = DeepExplainer(layer, background).shap_values(x)
    for sample in range(2):
        for output in range(SIZE):
            expected = np.mean(
                [restated(layer, step, x[sample].numpy(), each.numpy(), output) for each in background], 0
            )
            # Quotients of differences of numbers of size 1.
            np.testing.assert_allclose(values[sample, ..., output], expected, rtol=0, atol=1e-12)


class GivenCell(CentredCell):
    """A step of the test's."""

    def __init__(self, gates: str, step: Callable[..., Any]) -> None:
        super().__init__()
        self.gates, self.step, self.other = gates, step, nn.Linear(2, 2)

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        return (self.step(self, x, h_gates, h),)


UNCERTAIN: dict[str, Callable[[], nn.Module]] = {
    "mixing": MixingCell,
    "turned gates": TurnedGatesCell,
    "no atom": LinearCell,
    "a buffer in a product": ScaledCell,
    "an atom of a buffer": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + m.out(h, m.exp)),
    "an atom of a number": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + m.out(h, 2.0)),
    "a state that is a buffer": lambda: GivenCell("a", lambda m, x, g, h: (m.value(x + g), m.mean * 2)[1]),
    "rows are mixed": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + h - h.mean(0, keepdim=True)),
    "rows of gates are mixed": lambda: GivenCell("a", lambda m, x, g, h: m.value((x + g).roll(1, 0)) + h),
    "whole numbers": lambda: GivenCell("a", lambda m, x, g, h: m.value((x + g).to(torch.long))),
    "a size of its own": lambda: GivenCell("ab", lambda m, x, g, h: m.value((x + g)[:, 3:6]) + h),
    "a shape of its own": lambda: GivenCell(
        "ab", lambda m, x, g, h: m.value((x + g).view(2, 2, 3)[:, 0]) + h
    ),
    "a mask": lambda: GivenCell("a", lambda m, x, g, h: torch.where(h > 0, m.value(x + g), h)),
    "a mask that is a buffer": lambda: GivenCell(
        "a", lambda m, x, g, h: m.value(x + g).masked_fill(m.mean, 0)
    ),
    "a write": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + h.mul_(2)),
    "a result given": lambda: GivenCell("a", lambda m, x, g, h: torch.add(m.value(x + g), h, out=m.mean)),
    "another module": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + m.other(h)),
    "a decision": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) if h.sum() > 0 else h),
    "a cut": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + h.detach()),
    "no rule": lambda: GivenCell("a", lambda m, x, g, h: m.value(x + g) + h.renorm(2, 0, 1.0)),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_is_not_certain_has_no_sweep(name: str) -> None:
    with pytest.raises(NotElementwiseError):
        DerivedSweep(UNCERTAIN[name]())


@pytest.mark.parametrize("name", sorted(CELLS.keys() - UNCERTAIN.keys() - {"linear"}))
def test_what_is_certain_has_one(name: str) -> None:
    assert DerivedSweep(CELLS[name][0]()).slots.slots


def test_trying_out_draws_no_numbers_of_the_users() -> None:
    state = torch.get_rng_state()
    DerivedSweep(CoupledCell())
    assert torch.equal(torch.get_rng_state(), state)
