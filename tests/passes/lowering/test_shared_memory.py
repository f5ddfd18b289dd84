"""Memory that others read is written as before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from passes.graph.writes import write_of
from rewriter import decompose
from tests.support.additive import assert_additive


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        v = x[:, :2]
        v.exp_()
        x -= 1
        return (x * x).sum(1, keepdim=True) + v.sum(1, keepdim=True)


def test_the_input_is_not_written_to() -> None:
    x, background = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    before = x.clone()
    exact = decompose(WritesInput())
    torch.testing.assert_close(exact(x), WritesInput()(x.clone()), rtol=0, atol=1e-12)
    assert torch.equal(x, before)

    class Cloned(WritesInput):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clone())

    assert_additive(Cloned(), x, background)


class WritesFactors(nn.Module):
    """Its writes stay, and change what a product was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.view(-1, 3)[:, :2].tanh_()
        columns = y.t()
        columns[0] *= columns[1]
        return y


def test_what_a_product_was_made_of_may_be_written_to() -> None:
    assert any(write_of(node) for node in decompose(WritesFactors()).graph.nodes)
    assert_additive(WritesFactors(), torch.randn(4, 3), torch.randn(5, 3))


class Keeps(nn.Module):
    """Its state is written: what a graph must not turn into a value."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_state_is_written_as_before() -> None:
    model, x = Keeps(), torch.ones(2)
    exact = decompose(model)
    assert [exact(x).tolist() for _ in range(2)] == [[1.0, 1.0], [2.0, 2.0]]


class Returns(nn.Module):
    """A user's module that hands out memory that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.zeros(1, 3)]

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError
        return self.kept[0]


class WritesReturned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Returns()

    def forward(self, x: Tensor) -> Tensor:
        kept = self.inner(x)
        kept += 1
        return kept.exp() + x


def test_memory_of_an_opaque_module_is_written_as_before() -> None:
    model, twin, x = WritesReturned(), WritesReturned(), torch.ones(2, 3)
    exact = decompose(twin)
    for _ in range(3):
        torch.testing.assert_close(exact(x), model(x), rtol=0, atol=1e-5)


def test_lists_and_dictionaries_keep_what_they_are() -> None:
    class Collects(nn.Module):
        def forward(self, named: dict[str, Tensor]) -> Tensor:
            named["b"] = named["a"].exp()
            return named["a"] * named["b"]

    named = {"a": torch.ones(2, 1)}
    assert torch.equal(decompose(Collects())(named), Collects()(dict(named)))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("add_", "add"),
        ("relu_", "relu"),
        ("unsqueeze_", None),
        ("normal_", None),
        ("requires_grad_", None),
        ("add", None),
        ("__add__", None),
        ("my_", None),
    ],
)
def test_methods_that_write(target: str, expected: str | None) -> None:
    graph = fx.Graph()
    write = write_of(graph.call_method(target, (graph.placeholder("x"), 1)))
    assert (write and write.target) == expected


def test_dtype_of_the_written_tensor_stays() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = x * 2
            h += y
            g = x * 3
            g[:, 0] = y[:, 0]
            return h * g

    x, y = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.float64)
    got, expected = decompose(Mixed())(x, y), Mixed()(x, y)
    assert got.dtype is expected.dtype is torch.float32
    assert torch.equal(got, expected)
