"""Products in another dtype, Heaviside's step, and variances with a dimension less."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewriter import DeepExplainer


class Computes(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ComputesInCode(Computes):
    """The same, where torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if float(x.sum()) < 1e9 else x


def values_of(
    kind: type[Computes], function: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor
) -> np.ndarray:
    found: np.ndarray = DeepExplainer(kind(function), x0).shap_values(x)
    return found


def shapley(function: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> list[float]:
    """Play the game of two numbers in both orders."""
    f = {
        (a, b): float(function(torch.stack([(x if a else x0)[:, 0], (x if b else x0)[:, 1]], 1)))
        for a in (0, 1)
        for b in (0, 1)
    }
    first = (f[1, 0] - f[0, 0] + f[1, 1] - f[0, 1]) / 2
    return [first, f[1, 1] - f[0, 0] - first]


@pytest.mark.parametrize("kind", [Computes, ComputesInCode])
@pytest.mark.parametrize(
    ("x", "x0"),
    [
        ([1.3, 0.7], [-0.4, 0.2]),
        ([0.0, 0.7], [-1.0, 0.3]),
        ([0.0, 0.6], [0.0, -2.0]),
        ([2.0, 5.0], [0.0, 3.0]),
    ],
)
def test_heavisides_step_has_shapley_values(kind: type[Computes], x: list[float], x0: list[float]) -> None:
    def step(each: Tensor) -> Tensor:
        return torch.heaviside(each[:, :1], each[:, 1:])

    a, b = torch.tensor([x]).double(), torch.tensor([x0]).double()
    got = values_of(kind, step, a, b)
    np.testing.assert_allclose(got.reshape(2), shapley(step, a, b), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", [Computes, ComputesInCode])
def test_products_in_another_dtype_are_those_of_numbers_in_it(kind: type[Computes]) -> None:
    x, x0 = torch.randn(3, 4), torch.randn(5, 4)
    got = values_of(kind, lambda each: each.prod(1, keepdim=True, dtype=torch.float64), x, x0)
    expected = values_of(kind, lambda each: each.double().prod(1, keepdim=True), x, x0)
    np.testing.assert_array_equal(got, expected)
    change = x.double().prod(1, keepdim=True) - x0.double().prod(1).mean()
    # Multipliers come back to float32.
    np.testing.assert_allclose(got.sum(1), change, rtol=0, atol=1e-5 * float(change.abs().max()))


@pytest.mark.parametrize("kind", [Computes, ComputesInCode])
def test_a_variance_of_a_whole_dimension(kind: type[Computes]) -> None:
    x, x0 = torch.randn(4, 4).double(), torch.randn(4, 4).double()

    def loss(var: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda each: F.gaussian_nll_loss(each, each.flip(1), var(each), reduction="none")

    # As many rows as features: a broadcast would be silent.
    got = values_of(kind, loss(lambda each: each.square().mean(1)), x, x0)
    expected = values_of(kind, loss(lambda each: each.square().mean(1, keepdim=True)), x, x0)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)
    of = loss(lambda each: each.square().mean(1))
    np.testing.assert_allclose(got.sum(1), (of(x) - of(x0).mean(0)), rtol=0, atol=1e-12)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda x: x.topk(2, sorted=False)[0],
    "renorm": lambda x: x.renorm(2, 0, 0.1),
    "zeta": lambda x: torch.special.zeta(x.exp() + 1.5, torch.ones_like(x)),
    "gammainc": lambda x: torch.special.gammainc(x.exp(), torch.ones_like(x)),
}


@pytest.mark.parametrize("kind", [Computes, ComputesInCode])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_is_refused_by_its_name(kind: type[Computes], name: str) -> None:
    x, x0 = torch.randn(3, 4).double(), torch.randn(5, 4).double()
    with pytest.raises(RuntimeError, match=rf"without an exact rule is .*{name}|without a rule: .*{name}"):
        values_of(kind, REFUSED[name], x, x0)
