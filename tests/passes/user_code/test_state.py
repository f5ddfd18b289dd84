"""State, modes and generators of the user's code stay what they are."""

from __future__ import annotations

import dataclasses
import random
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose
from tests.support.compare import assert_close
from tests.support.models.soundness import Base, Plain, gru


class SpatialDropout(nn.Dropout2d):
    """A subclass of one of torch's layers that reads ``training`` in torch's code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def test_subclass_of_a_torch_layer_follows_the_mode() -> None:
    model = nn.Sequential(SpatialDropout(0.5), gru())
    rewritten = decompose(model)
    x = torch.randn(2, 5, 3)
    assert not torch.equal(rewritten(x)[0], rewritten(x)[0])
    assert_close(rewritten.eval()(x)[0], model.eval()(x)[0], 1e-6, "output")


class DictState(Base):
    def forward(self, x: Tensor) -> Tensor:
        out, h = self.g(x, self.memory["h"])
        self.memory["h"] = h.detach()
        return out


class Counter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.memory["n"] += 1
        return self.g(x)[0] * self.memory["n"]


class Resettable(Base):
    """Reads a state that only another method assigns."""

    def remember(self, h: Tensor) -> None:
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0] if self.h is None else self.g(x, self.h)[0]


@pytest.mark.parametrize("make", [DictState, Counter])
@pytest.mark.parametrize("flat", [False, True])
def test_state_in_containers_lives_on(make: type[Base], flat: bool) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model, x if flat else None)
    assert model.memory == {"h": None, "n": 0}
    for _ in range(3):
        assert_close(rewritten(x), model(x), 1e-6, "output")


def test_state_that_another_method_sets() -> None:
    model = Resettable()
    rewritten = decompose(model)
    x, h = torch.randn(2, 4, 3), torch.randn(1, 2, 3)
    for each in (model, rewritten):
        each.remember(h)
    assert_close(rewritten(x), model(x), 1e-6, "output")


@dataclasses.dataclass
class Batch:
    x: Tensor
    h0: Tensor | None = None


class Learned(Base):
    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(1, 1, 3))

    def start(self, x: Tensor) -> Tensor:
        return self.h0.expand(1, x.shape[0], 3).contiguous()


class ByField(Learned):
    def forward(self, b: Batch) -> Tensor:
        h = self.start(b.x) if b.h0 is None else b.h0
        return self.g(b.x, h)[0]


class ByKey(Learned):
    def forward(self, b: dict[str, Tensor]) -> Tensor:
        if b.get("h0") is None:
            return self.g(b["x"], self.start(b["x"]))[0]
        return self.g(b["x"], b["h0"])[0]


class ByWalrus(Learned):
    def forward(self, b: dict[str, Tensor]) -> Tensor:
        if (h := b.get("h0")) is None:
            h = self.start(b["x"])
        return self.g(b["x"], h)[0]


def test_none_tests_of_any_form() -> None:
    x, h = torch.randn(2, 4, 3), torch.randn(1, 2, 3)
    for model, absent, given in (
        (ByField(), Batch(x), Batch(x, h)),
        (ByKey(), {"x": x}, {"x": x, "h0": h}),
        (ByWalrus(), {"x": x}, {"x": x, "h0": h}),
    ):
        rewritten = decompose(model)
        for argument in (absent, given):
            assert_close(rewritten(argument), model(argument), 1e-6, type(model).__name__)


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x if random.random() < 0.5 else -x)[0]


class NumpyRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x * float(np.random.rand()))[0]


@pytest.mark.parametrize("make", [PythonRandom, NumpyRandom])
@pytest.mark.parametrize("flat", [False, True])
def test_every_generator_is_left_alone_and_followed(make: type[Base], flat: bool) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    random.seed(3)
    np.random.seed(3)
    rewritten = decompose(model, x if flat else None)
    got = [rewritten(x) for _ in range(6)]
    random.seed(3)
    np.random.seed(3)
    for k, each in enumerate(got):
        assert_close(each, model(x), 1e-6, f"draw {k}")


class Calls(Base):
    def __call__(self, x: Tensor) -> Tensor:
        return 10 * super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0]


class Autocast(Base):
    @torch.autocast("cpu", dtype=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0]


def patched() -> nn.Module:
    model = Plain()
    model.forward = types.MethodType(lambda self, x: 3 * self.g(x)[0], model)  # type: ignore[method-assign]
    return model


class Wrapper(nn.Module):
    """Passes every attribute of what it wraps on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.module(x)


def compiled() -> nn.Module:
    model: Any = torch.compile(Plain(), backend="eager")
    return Wrapper(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, in torch.compile
@pytest.mark.parametrize("make", [Calls, patched, Autocast, compiled])
def test_what_surrounds_the_forward_is_kept(make: Callable[[], nn.Module]) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    got, expected = decompose(model)(x), model(x)
    assert got.dtype is expected.dtype
    assert_close(got, expected, 1e-2 if got.dtype is torch.bfloat16 else 1e-6, "output")


class OfAGraph(nn.Module):
    """Multiplies by a sparse matrix, in code that torch.fx cannot follow."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.adjacency = [adjacency]

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e30:
            return x
        return torch.stack(
            [torch.sparse.mm(self.adjacency[0], torch.exp(row.reshape(3, 2))) for row in x]
        ).flatten(1)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_are_known_by_their_parts(layout: torch.layout) -> None:
    with warnings.catch_warnings():
        # Torch says that they are in beta state.
        warnings.simplefilter("ignore")
        adjacency = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, 0, 4]]).double().to_sparse(layout=layout)
    model = OfAGraph(adjacency)
    x, x0 = (torch.randn(2, 6, dtype=torch.float64) for _ in range(2))
    values = DeepExplainer(model, x0, progress=False).shap_values(x)
    change = (model(x) - model(x0).mean(0)).numpy()
    np.testing.assert_allclose(values.sum(1), change, rtol=0, atol=1e-12)
    assert model.adjacency[0] is adjacency
