"""Functions of two operands, whichever of them varies: the two-player Shapley value, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.records import multipliers_of
from rewriter import decompose
from tests.support.additive import TOLERANCE, assert_additive, assert_copies_compute_the_same
from tests.support.compare import assert_same_model
from tests.support.oracles.pairs import RESTATED, RestatedPair
from tests.support.oracles.shapley import shapley_of_orders

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

Function = Callable[[Tensor, Any], Tensor]


def drawn(oracle: RestatedPair, k: int) -> Tensor:
    """Draw values of one operand, of both signs where it has them."""
    size = oracle.low[k] + (oracle.high[k] - oracle.low[k]) * torch.rand(1, 200, dtype=torch.float64)
    return size * (torch.randint(2, size.shape) * 2 - 1) if oracle.signed[k] else size


@pytest.mark.parametrize("name", RESTATED)
def test_is_the_shapley_value_of_two_players(name: str) -> None:
    oracle = RESTATED[name]
    (a, b), (a0, b0) = ((drawn(oracle, 0), drawn(oracle, 1)) for _ in range(2))
    if oracle.of_second:
        a0 = a
    atom = Pairwise(name.partition(" ")[0], **oracle.options)
    m_a, m_b = multipliers_of(atom)((a, b), (a0, b0), atom(a, b), atom(a0, b0))
    got = torch.stack([m_a * (a - a0), m_b * (b - b0)], -1)[0].tolist()
    for shares, x, y, x0, y0 in zip(
        got, a[0].tolist(), b[0].tolist(), a0[0].tolist(), b0[0].tolist(), strict=True
    ):
        expected = shapley_of_orders(lambda now: float(oracle.function(*now)), [x, y], [x0, y0])
        # Values of size up to 40 are subtracted, which leaves some roundings of 2e-16 times that.
        assert shares == pytest.approx(expected, abs=2e-13, rel=1e-12), (x, y, x0, y0)


def test_signs_of_both_operands_are_drawn() -> None:
    """A copied sign, for one, is a step that positive operands never meet."""
    for oracle in RESTATED.values():
        for k, signed in enumerate(oracle.signed):
            assert bool((drawn(oracle, k) < 0).any()) == signed


class Of(nn.Module):
    """A function of features, and of what varies, a weight or a number."""

    def __init__(self, function: Function, other: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.function, self.other = function, other
        self.weight = nn.Parameter(torch.tensor([0.7, 1.3, 0.4, 2.1]))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.sigmoid(self.first(x)) * 2 + 0.2
        b = {
            "varies": lambda: torch.sigmoid(self.second(x)) + 0.3,
            "weight": lambda: self.weight,
            "number": lambda: 0.8,
            "size": lambda: x.shape[-1],
        }[self.other]()
        return self.last(self.function(a, b))


TENSORS: dict[str, Function] = {
    name: getattr(torch, name)
    for name in (
        *("atan2", "arctan2", "copysign", "fmax", "fmin", "fmod", "hypot", "logaddexp", "logaddexp2"),
        *("maximum", "minimum", "remainder", "xlogy", "pow", "float_power", "div", "clamp_min", "clamp_max"),
    )
}
# What takes a number in the place of its second operand.
NUMBERS: dict[str, Function] = {
    "fmod": torch.fmod,
    "copysign": torch.copysign,
    "pow": lambda a, b: a**b,
    "xlogy": torch.xlogy,
    "xlog1py": torch.special.xlog1py,
    "a % b": lambda a, b: a % b,
    "a // b": lambda a, b: a // b,
    "a / b": lambda a, b: a / b,
    "div floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "clamp_min": lambda a, b: a.clamp_min(b),
    "clamp_max": lambda a, b: torch.clamp_max(a, b),
    "float_power": torch.float_power,
}
# The other way round: the number, or the weight, comes first.
TURNED: dict[str, Function] = {
    "b ** a": lambda a, b: b**a,
    "b % a": lambda a, b: b % a,
    "b / a": lambda a, b: b / a,
    "b // a": lambda a, b: b // a,
    "remainder": lambda a, b: torch.remainder(b, a),
    "xlogy": lambda a, b: torch.xlogy(b, a),
    "float_power": lambda a, b: torch.float_power(b, a),
}


def assert_exact(function: Function, other: str) -> None:
    model = Of(lambda a, b: function(a, b).to(a.dtype), other)
    x, background = torch.randn(4, 3), torch.randn(5, 3)
    exact = decompose(model)
    assert not exact.report.uncovered
    assert not exact.report.islands
    for dtype in TOLERANCE:
        typed = Of(model.function, other).to(dtype)
        assert_same_model(typed, decompose(typed), x.to(dtype))
    assert_additive(model, x, background)
    assert_copies_compute_the_same(model, x)


@pytest.mark.parametrize("name", TENSORS)
def test_both_vary(name: str) -> None:
    assert_exact(TENSORS[name], "varies")


@pytest.mark.parametrize("name", TENSORS)
def test_one_is_a_weight(name: str) -> None:
    assert_exact(TENSORS[name], "weight")
    assert_exact(lambda a, b: TENSORS[name](b.expand_as(a), a), "weight")


@pytest.mark.parametrize("other", ["number", "size", "varies", "weight"])
@pytest.mark.parametrize("name", NUMBERS)
def test_one_is_a_number(name: str, other: str) -> None:
    if "//" not in name and "div" not in name:
        assert_exact(NUMBERS[name], other)
        return
    # Torch has no gradient for a whole quotient, but the slope of its chord is one.
    model, x, background = Of(NUMBERS[name], other), torch.randn(4, 3), torch.randn(5, 3)
    assert torch.equal(model(x), decompose(model)(x))
    assert_additive(model, x, background)


@pytest.mark.parametrize("other", ["number", "size", "weight"])
@pytest.mark.parametrize("name", TURNED)
def test_the_number_comes_first(name: str, other: str) -> None:
    if "//" in name or (other != "weight" and ("%" in name or name == "remainder")):
        # Of these torch has no gradient.
        model, x, background = Of(TURNED[name], other), torch.randn(4, 3), torch.randn(5, 3)
        assert torch.equal(model(x), decompose(model)(x))
        assert_additive(model, x, background)
    else:
        assert_exact(TURNED[name], other)


# Torch has a derivative in the second operand only.
OF_SECOND: dict[str, Function] = {
    "igamma": torch.igamma,
    "gammainc": torch.special.gammainc,
    "gammaincc": torch.special.gammaincc,
    "zeta": lambda a, b: torch.special.zeta(a + 1, b),
}


@pytest.mark.parametrize("name", OF_SECOND)
def test_the_first_operand_is_a_weight(name: str) -> None:
    # Torch itself refuses if it has to derive by the weight, too.
    assert_exact(lambda a, b: OF_SECOND[name](b.detach(), a), "weight")


@pytest.mark.parametrize("name", OF_SECOND)
def test_the_first_operand_varies(name: str) -> None:
    report = decompose(Of(OF_SECOND[name], "weight")).report
    assert "has no rule" in [each.reason for each in report.uncovered]


BOUNDS: dict[str, Function] = {
    "both": lambda a, b: torch.clamp(a, b - 0.2, b + 0.2),
    "crossed": lambda a, b: torch.clamp(a, b + 0.2, b - 0.2),
    "min": lambda a, b: a.clamp(min=b),
    "max": lambda a, b: torch.clip(a, max=b),
}


@pytest.mark.parametrize("other", ["varies", "weight"])
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_may_vary(name: str, other: str) -> None:
    assert_exact(BOUNDS[name], other)
