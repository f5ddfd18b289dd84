"""Calls in code that torch.fx cannot follow get their rules while the code runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from captum.attr import DeepLift
from torch import Tensor, nn
from torch.nn import functional as F

from passes.lowering.running_code import LowerRunning
from rewriter import DeepExplainer, decompose

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured


class Code(nn.Module):
    """A forward that decides by values, so that no graph of it is right."""

    def __init__(self, code: Callable[[nn.Module, Tensor], Tensor], **parts: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.code = code
        for name, build in parts.items():
            setattr(self, name, build())

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum() > 1e9:
            return -x
        return self.code(self, x)


def _each_step_into_zeros(model: Any, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        out[:, t] = torch.tanh(x[:, t]) * x[:, t]
    return out.sum(1)


def _decayed(model: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.size(0), 4)
    for step in x.unbind(1):
        h = h * torch.exp(-torch.relu(model.gap(step)))
        h = model.cell(step, h)
    return h


def _in_place(model: Any, x: Tensor) -> Tensor:
    y = 2 * x
    F.relu(y, inplace=True)
    z = y + 1
    z *= x
    z.sigmoid_()
    return (z / (1 + y)).sum(1)


def _by_keyword(model: Any, x: Tensor) -> Tensor:
    y = torch.relu_(input=2 * x) + F.hardtanh_(min_val=-0.5, input=x + 0)
    z = torch.ops.aten.exp_.default(self=x * 0.5)
    return (y * z).sum(1)


def _to_where_it_is_told(model: Any, x: Tensor) -> Tensor:
    y = torch.empty(0, dtype=x.dtype)
    torch.special.ndtr(torch.add(x, 1), out=y)
    kept = torch.ones_like(x)
    torch.tanh(x[:, 1:3], out=kept[:, 1:3])
    torch.mul(kept[:, :, 0], y[:, :, 1], out=kept[:, :, 2])
    values, places = torch.max(x, 1, out=(torch.empty(0, dtype=x.dtype), torch.empty(0, dtype=torch.long)))
    assert places.dtype == torch.long
    return (kept * torch.sub(y, x, out=torch.empty_like(x))).sum(1) * values


def _in_what_a_layer_gave(model: Any, x: Tensor) -> Tensor:
    y = model.gap(x)
    y.masked_fill_(torch.arange(5)[:, None] > 3, -1.0)
    F.elu_(y[:, :2], 0.5)
    part = y[..., 1:]
    part *= F.leaky_relu_(part - 1, 0.1)
    z = model.act(y)
    y += z
    y[:, 0].zero_()
    return torch.max(y, z).sum(1)


def _attention(model: Any, x: Tensor) -> Tensor:
    h, (last, c) = model.lstm(x)
    last += 1
    scores = F.softmax(h @ h.mT / 2, dim=-1)
    mixed = F.layer_norm(torch.einsum("bst,bth->bsh", scores, h), (4,))
    return (mixed.max(1).values * last[0]).mul(c[0])


CASES: dict[str, Callable[[], nn.Module]] = {
    "functions": lambda: Code(lambda m, x: F.gelu(F.softplus(x)).log().sum(1)),
    "powers": lambda: Code(lambda m, x: (2**x * x**3 - 1 / (2 + x.cos())).sum(1)),
    "modules": lambda: Code(lambda m, x: m.norm(m.act(x)).sum(1), norm=lambda: nn.LayerNorm(3), act=nn.SiLU),
    "items": lambda: Code(_each_step_into_zeros),
    "cell": lambda: Code(_decayed, gap=lambda: nn.Linear(3, 4), cell=lambda: nn.GRUCell(3, 4)),
    "in place": lambda: Code(_in_place),
    "by keyword": lambda: Code(_by_keyword),
    "to where it is told": lambda: Code(_to_where_it_is_told),
    "in what a layer gave": lambda: Code(_in_what_a_layer_gave, gap=lambda: nn.Linear(3, 4), act=nn.Tanh),
    "attention": lambda: Code(_attention, lstm=lambda: nn.LSTM(3, 4, batch_first=True)),
    "inside a graph": lambda: nn.Sequential(
        nn.Linear(3, 3), Code(lambda m, x: (x * x.tanh()).sum(1)), nn.GELU(), nn.Linear(3, 2)
    ),
    "inside such code": lambda: Code(
        lambda m, x: m.inner(torch.exp(x) * x), inner=lambda: Code(lambda m, x: F.elu(x * x).sum(1))
    ),
}


# Relative to the largest output: sums of a few hundred terms, some of which are larger.
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_attributions_add_up(name: str, dtype: torch.dtype, exact: float) -> None:
    model = CASES[name]().to(dtype)
    x, background = (torch.randn(n, 5, 3, dtype=dtype) for n in (4, 6))
    assert decompose(model).report.islands
    values = DeepExplainer(model, background).shap_values(x)
    with torch.no_grad():
        expected = (model(x).double() - model(background).double().mean(0)).numpy()
    size = max(1.0, model(x).abs().max().item(), model(background).abs().max().item())
    assert np.abs(values.reshape(4, 15, -1).sum(1) - expected).max() < exact * size


@pytest.mark.parametrize("name", CASES)
def test_stock_shap_gives_the_same(name: str) -> None:
    model = CASES[name]().double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (4, 6))
    got = shap.DeepExplainer(decompose(model), background).shap_values(x, check_additivity=False)
    expected = DeepExplainer(model, background).shap_values(x)
    assert np.abs(got - expected).max() < 1e-12 * max(1, np.abs(expected).max())


# Captum says so in every attribution.
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_captum_adds_up(name: str) -> None:
    model = CASES[name]().double()
    x, background = (torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    _, delta = DeepLift(decompose(model)).attribute(x, background, target=1, return_convergence_delta=True)
    assert delta.abs().max() < 1e-12 * max(1, model(x.detach()).abs().max())


class Branching(Code):
    """The same as ``Code``, with a forward that torch.fx can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


@pytest.mark.parametrize("name", ["functions", "powers", "modules", "cell"])
def test_values_are_those_of_a_graph(name: str) -> None:
    code: Any = CASES[name]().double()
    graph = Branching(code.code)
    graph._modules = code._modules
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (4, 6))
    if name != "cell":
        assert not decompose(graph).report.islands
    got, expected = (DeepExplainer(each, background).shap_values(x) for each in (code, graph))
    # The same rules on the same numbers; sums may be in another order.
    assert np.abs(got - expected).max() < 1e-13


def test_only_what_varies_is_lowered() -> None:
    called = []

    def call(name: str, atom: nn.Module, operands: tuple[Any, ...]) -> Any:
        called.append(name)
        return atom(*operands)

    x, weight = torch.randn(2, 3), nn.Parameter(torch.randn(3, 3))
    with LowerRunning(call) as mode:
        mode.note((x, weight))
        y = (x @ torch.tanh(weight)) * weight.sum()
        (torch.zeros_like(y) + x.shape[0]).exp()
        assert not called
        (y * x).sigmoid()
    assert called == ["mul", "sigmoid"]


def test_the_model_is_left_as_it_was() -> None:
    model = CASES["attention"]()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    x = torch.randn(3, 5, 3)
    y = model(x)
    DeepExplainer(model, torch.randn(4, 5, 3)).shap_values(x)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    assert torch.equal(model(x), y)


class ByNumpy(torch.autograd.Function):
    """Linear; none of its calls is torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(3 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return 3 * grads[0]


def test_what_follows_a_function_of_the_users_varies() -> None:
    model = Code(lambda m, x: torch.tanh(ByNumpy.apply(x)).sum(1)).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (4, 6))
    assert decompose(model).report.islands
    expected = (model(x) - model(background).mean(0)).numpy()
    ours = DeepExplainer(model, background).shap_values(x)
    stock = shap.DeepExplainer(decompose(model), background).shap_values(x, check_additivity=False)
    for values in (ours, stock):
        assert np.abs(values.reshape(4, 15, -1).sum(1) - expected).max() < 1e-12


def test_numpy_gets_what_has_no_gradient() -> None:
    """As in the user's own run without gradients; what it computes is cut off, and said to be."""
    model = Code(lambda m, x: x.sum(1) * 2 + torch.from_numpy(np.exp(x.numpy())).sum(1)).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (4, 6))
    values = DeepExplainer(model, background).shap_values(x, check_additivity=False)
    # What is left is linear, in each feature by itself.
    expected = 2 * (x - background.mean(0)).numpy()
    got = np.stack([values[:, :, k, k] for k in range(3)], 2)
    assert np.abs(got - expected).max() < 1e-12
