"""Writes in place: the same values whatever shares memory, and every operation with a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from passes.graph.writes import write_of
from rewriter import decompose
from tests.support.additive import TOLERANCE, assert_additive, assert_copies_compute_the_same

CASES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {}


class Model(nn.Module):
    """A case between linear layers; it never sees the input itself."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first = nn.Linear(3, 4)
        self.square = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return CASES[self.name](self, self.first(x)).flatten(1).sum(1, keepdim=True)


def case(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    CASES[function.__name__] = function
    return function


@case
def second_name(model: nn.Module, h: Tensor) -> Tensor:
    z = h
    z += 1
    return h * h


@case
def residual(model: nn.Module, h: Tensor) -> Tensor:
    r = h
    h = model.square(torch.relu(h))
    h += r
    return h.tanh_()


@case
def method(model: nn.Module, h: Tensor) -> Tensor:
    h.mul_(h).add_(1, alpha=2).clamp_(max=2.0)
    return h.exp_()


@case
def operators(model: nn.Module, h: Tensor) -> Tensor:
    h -= 0.5
    h /= 2
    g = torch.sigmoid(h)
    g *= h
    g **= 2
    h @= model.square.weight
    return g + h


@case
def function_in_place(model: nn.Module, h: Tensor) -> Tensor:
    F.relu(h, inplace=True)
    h = F.elu_(h - 0.5)
    F.leaky_relu(h, 0.2, True)
    torch.sigmoid_(h)
    return h * h


@case
def layer_in_place(model: nn.Module, h: Tensor) -> Tensor:
    y = model.relu(h)
    return y + h * y


@case
def layers_in_place(model: nn.Module, h: Tensor) -> Tensor:
    return model.square(model.relu(model.gelu(model.relu(h))))


@case
def view_is_written(model: nn.Module, h: Tensor) -> Tensor:
    y = h[:, 0]
    y.add_(1)
    return h * h


@case
def view_is_rectified(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 1:].relu_()
    return h * h


@case
def view_by_method(model: nn.Module, h: Tensor) -> Tensor:
    h.narrow(1, 0, 2).exp_()
    return h * h


@case
def transposed_view(model: nn.Module, h: Tensor) -> Tensor:
    t = h.T
    t += 1
    return h * h


@case
def base_is_written(model: nn.Module, h: Tensor) -> Tensor:
    y = h[:, :2]
    h.mul_(h)
    return (h.sum(1, keepdim=True) + y.exp()).tanh()


@case
def overlapping_views(model: nn.Module, h: Tensor) -> Tensor:
    y, z = h[:, :2], h[:, 1:3]
    y.tanh_()
    return z * z


@case
def views_of_views(model: nn.Module, h: Tensor) -> Tensor:
    v = h[:, :2]
    u = h.view(-1, 4)
    v.exp_()
    u.tanh_()
    h.add_(1)
    return torch.cat([h * u, v], 1)


@case
def copy_is_not_a_view(model: nn.Module, h: Tensor) -> Tensor:
    c = h[:, [0, 1]]
    c.exp_()
    return h.sum(1, keepdim=True).tanh() + c


@case
def items_of_zeros(model: nn.Module, h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], 3)
    out[:, 0] = h[:, 0]
    out[:, 1:] = torch.tanh(h[:, :2])
    out[:, -1] += 1
    return torch.exp(out)


@case
def decoder(model: nn.Module, h: Tensor) -> Tensor:
    out = torch.zeros(h.shape[0], 3, 4, dtype=h.dtype)
    for t in range(3):
        h = torch.tanh(model.square(h))
        out[:, t] = h
        out[:, t, 0] *= h[:, 1]
    return out * out


@case
def item_is_multiplied(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 1] *= h[:, 0]
    h[..., 2] = h[..., 1] * 2
    return torch.sigmoid(h)


@case
def items_by_index(model: nn.Module, h: Tensor) -> Tensor:
    h[:, [0, 2]] = h[:, [1, 3]] * 2
    return h.tanh()


@case
def copied(model: nn.Module, h: Tensor) -> Tensor:
    g = torch.zeros_like(h)
    g.copy_(h)
    g.mul_(h)
    return g


@case
def broadcast_copy(model: nn.Module, h: Tensor) -> Tensor:
    g = h.clone()
    g.copy_(h[:, :1])
    return g * h


@case
def filled(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 0].fill_(2.0)
    h[:, 1].zero_()
    h.masked_fill_(torch.ones_like(h) < 0, 3.0)
    return h * h


@case
def constant_with_a_view(model: nn.Module, h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], 4)
    u = out.view(-1, 2, 2)
    out[:, :2] = h[:, :2]
    return out.exp() + u.exp().flatten(1)


@case
def sizes(model: nn.Module, h: Tensor) -> Tensor:
    n = h.shape[1]
    n += 1
    n *= 2
    return h.tanh() * n


WITHOUT_GRADIENT = {
    "method",
    "operators",
    "function_in_place",
    "base_is_written",
    "views_of_views",
    "item_is_multiplied",
}


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_additivity(name: str) -> None:
    torch.manual_seed(0)
    model = Model(name)
    x, background = torch.randn(4, 3), torch.randn(5, 3)
    for dtype, tolerance in TOLERANCE.items():
        typed = model.to(dtype)
        exact = decompose(typed)
        assert not exact.report.islands
        a, b = (x.to(dtype).requires_grad_() for _ in range(2))
        # Twice: nothing of the first call may be left in the second.
        y = [exact(a), exact(a)][1]
        y0 = typed(b)
        torch.testing.assert_close(y, y0, rtol=0, atol=tolerance * max(1.0, y0.abs().max().item()))
        (gradient,) = torch.autograd.grad(y.sum(), a)
        try:
            (expected,) = torch.autograd.grad(y0.sum(), b)
        except RuntimeError:
            # The original overwrites what its own gradient needs.
            assert name in WITHOUT_GRADIENT
            continue
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance * scale)
    assert_additive(model, x, background)
    assert_copies_compute_the_same(model.float(), x)


SHARED = {"view_by_method", "transposed_view", "base_is_written", "overlapping_views", "views_of_views"}


@pytest.mark.parametrize(
    "name", sorted(CASES.keys() - SHARED - {"constant_with_a_view", "sizes", "copy_is_not_a_view"})
)
def test_no_write_is_left(name: str) -> None:
    writes = [node for node in decompose(Model(name)).graph.nodes if write_of(node)]
    assert writes == []


def test_writes_to_shared_memory_stay() -> None:
    graph = decompose(Model("overlapping_views")).graph
    assert [node.target for node in graph.nodes if write_of(node)] == ["copy_"]


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
