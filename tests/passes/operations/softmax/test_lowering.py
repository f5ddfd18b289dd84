"""Softmax and its kin become atoms that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from rewriter import decompose
from tests.support.compare import assert_same_model
from tests.support.models.softmaxes import Call, InCode


class Shifted(Call):
    """Keeps what is called from being the whole model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(2 * x) + 0.1


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.softmax": lambda x: F.softmax(x, -1),
    "F.softmax by keyword": lambda x: F.softmax(input=x, dim=1, _stacklevel=5, dtype=torch.float64),
    "torch.softmax": lambda x: torch.softmax(x, 2),
    "torch.softmax dtype": lambda x: torch.softmax(x, -2, torch.float64),
    "torch.special.softmax": lambda x: torch.special.softmax(x, dim=-3),
    "x.softmax": lambda x: x.softmax(1),
    "x.softmax dtype": lambda x: x.softmax(dim=-1, dtype=torch.float32),
    "F.log_softmax": lambda x: F.log_softmax(x, dim=1),
    "torch.log_softmax": lambda x: torch.log_softmax(x, -1, dtype=torch.float64),
    "torch.special.log_softmax": lambda x: torch.special.log_softmax(x, 3),
    "x.log_softmax": lambda x: x.log_softmax(-1),
    "F.softmin": lambda x: F.softmin(x, 2),
    "torch.logsumexp": lambda x: torch.logsumexp(x, 1),
    "torch.logsumexp of several": lambda x: torch.logsumexp(x, dim=(-1, 1), keepdim=True),
    "torch.special.logsumexp": lambda x: torch.special.logsumexp(x, (2, 3)),
    "x.logsumexp": lambda x: x.logsumexp(-2, True),
    "nn.Softmax": nn.Softmax(dim=1),
    "nn.Softmax from the end": nn.Softmax(dim=-2),
    "nn.LogSoftmax": nn.LogSoftmax(dim=-1),
    "nn.Softmin": nn.Softmin(dim=2),
    "nn.Softmax2d": nn.Softmax2d(),
}


def atoms(model: nn.Module) -> list[Atom]:
    return [module for module in model.modules() if isinstance(module, Atom)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_computes_the_same(name: str, dtype: torch.dtype) -> None:
    model = Shifted(CALLS[name])
    exact: Any = decompose(model)
    assert len(atoms(exact)) == 1
    assert len(exact.report.operations) == 1
    assert_same_model(model, exact, torch.randn(2, 3, 4, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_bit_equal(dtype: torch.dtype) -> None:
    x = 10 * torch.randn(4, 50).to(dtype)
    for function in (F.softmax, F.log_softmax):
        got = decompose(Call(lambda x, f=function: f(x, -1)))(x)  # type: ignore[misc]
        assert got.dtype is dtype
        assert torch.equal(got, function(x, -1))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("kind", [nn.Softmax, nn.LogSoftmax, nn.Softmin])
def test_without_a_dimension_torch_picks(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        expected = kind()(x)
    assert torch.equal(decompose(kind())(x), expected)


def test_modules_keep_their_face() -> None:
    for kind in (nn.Softmax, nn.LogSoftmax):
        lowered = decompose(InCode(kind(dim=-1))).softmax
        assert isinstance(lowered, kind)
        assert lowered.dim == -1


def test_what_is_not_known_is_left() -> None:
    computed = decompose(Call(lambda x: F.softmax(x, x.dim() - 1)))
    x = torch.randn(2, 3)
    assert not atoms(computed)
    assert torch.equal(computed(x), x.softmax(1))
    into = decompose(Call(lambda x: torch.logsumexp(x, -1, out=torch.zeros(2))))
    assert not atoms(into)
    assert torch.equal(into(x), x.logsumexp(1))


def test_of_a_constant_is_left() -> None:
    model = nn.Linear(3, 3)
    assert not atoms(decompose(Call(lambda x: x * model.weight.softmax(-1)[0])))
