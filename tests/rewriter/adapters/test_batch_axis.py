"""Stock explainers are exact wherever a model keeps its batch, on what decompose returns."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import shap
import torch
from captum.attr import DeepLift, DeepLiftShap
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.leaves import Atom, Mul, TanhAtom
from rewriter import decompose
from rewriter.adapters.pairs import bound_rules
from tests.support.models.batch_elsewhere import MODELS, Attention, TimeFirst, additivity
from tests.support.watching import snapshot

DOUBLE = torch.float64
# captum says of every model that its hooks are being set, and of torch that they are its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting forward, backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already:UserWarning"),
]


def by_shap(model: nn.Module, x: Tensor, background: Tensor) -> np.ndarray:
    explainer = shap.DeepExplainer(model, background)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values: np.ndarray = explainer.shap_values(x, check_additivity=False)
    return values


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-10)], ids=str)
# As many steps as rows of shap's batch, a number that two does not divide, and one that it does.
@pytest.mark.parametrize("steps", [5, 6, 8])
@pytest.mark.parametrize("kind", MODELS)
def test_additive(kind: type[nn.Module], steps: int, dtype: torch.dtype, tolerance: float) -> None:
    model = kind().to(dtype)
    x, background = (torch.randn(n, steps, 3, dtype=dtype) for n in (3, 4))
    rewritten = decompose(model)
    before = snapshot(rewritten)
    values = by_shap(rewritten, x, background)
    assert additivity(values, model, x, background) <= tolerance
    for target in (0, 1):
        got, delta = DeepLiftShap(rewritten).attribute(
            x, background, target=target, return_convergence_delta=True
        )
        assert delta.abs().max() <= tolerance
        torch.testing.assert_close(
            got, torch.from_numpy(values[..., target]).to(dtype), rtol=0, atol=tolerance
        )
    assert snapshot(rewritten) == before


def test_time_first_equals_batch_first() -> None:
    class Transposed(TimeFirst):
        def after(self, h: Tensor) -> Tensor:
            h = h.transpose(0, 1)
            return (torch.softmax(self.score(torch.tanh(h)), 1) * h).sum(1)

    first, transposed = Attention().double(), Transposed().double()
    transposed.load_state_dict(first.state_dict())
    x, background = (torch.randn(n, 6, 3, dtype=DOUBLE) for n in (3, 4))
    a, b = (by_shap(decompose(model), x, background) for model in (first, transposed))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_guessing_dimension_0_is_wrong() -> None:
    """The models above do need more than that."""
    x = torch.randn(6, 8, 3, dtype=DOUBLE, requires_grad=True)
    tanh, mul = TanhAtom(), Mul()
    with bound_rules(tanh), bound_rules(mul):
        h = x.transpose(0, 1)
        mul(tanh(h), h).sum().backward()
    y = (torch.tanh(x) * x).sum((1, 2)).detach()
    total = (x.grad[:3] * (x[:3] - x[3:]).detach()).sum((1, 2))
    assert (total - (y[:3] - y[3:])).abs().max() > 1e-3


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor, other: Tensor, scale: Any = 1.0) -> Tensor:
        h, _ = self.gru(x.transpose(0, 1))
        return torch.relu(h * other.unsqueeze(0)).sum(0) * scale


def test_several_inputs_and_further_arguments() -> None:
    model = TwoInputs().double()
    rewritten = decompose(model)
    a, a0 = (torch.randn(n, 4, 3, dtype=DOUBLE) for n in (2, 4))
    b, b0 = (torch.randn(n, 4, dtype=DOUBLE) for n in (2, 4))
    explainer = shap.DeepExplainer(rewritten, [a0, b0])
    values = explainer.shap_values([a, b], check_additivity=False)
    f, f0 = (model(*each).detach().numpy() for each in ((a, b), (a0, b0)))
    total = values[0].sum((1, 2)) + values[1].sum(1)
    np.testing.assert_allclose(total, f - f0.mean(0), rtol=0, atol=1e-12)
    for scale in (2.0, torch.rand(2, 1, dtype=DOUBLE)):
        _, delta = DeepLift(rewritten).attribute(
            (a, b), (a0[:2], b0[:2]), target=1, additional_forward_args=scale, return_convergence_delta=True
        )
        assert delta.abs().max() <= 1e-12


def test_dropout_keeps_its_draws() -> None:
    """In training mode captum's run draws what it would have drawn."""
    model = decompose(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)))
    x = torch.randn(2, 3)
    torch.manual_seed(1)
    DeepLift(model).attribute(x, target=0)
    after = torch.rand(1)
    torch.manual_seed(1)
    # The batch of samples and references.
    model(torch.cat([x, 0 * x]))
    assert torch.equal(after, torch.rand(1))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x[0, 0] > x[-1, 0])):
            x = self.act(x)
        return x.sum(1, keepdim=True)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_path_that_hangs_on_the_order_of_rows_is_refused(sign: int) -> None:
    model = decompose(Counts())
    x = torch.arange(6.0).view(2, 3) * sign
    before = snapshot(model)
    with pytest.raises(RewriteError, match="act: the model's code took another path when samples and refer"):
        DeepLift(model).attribute(x, x + 10 * sign)
    assert snapshot(model) == before
    # Nothing is left of the failed run.
    _, delta = DeepLift(model).attribute(x[:1], x[:1], return_convergence_delta=True)
    assert delta.abs().max() == 0


def test_odd_batch_names_the_module() -> None:
    model = decompose(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    with bound_rules(model), pytest.raises(RewriteError, match=r"^1: .* even number .* got shape \(3, 2\)"):
        model(torch.randn(3, 3))


def test_atoms_without_gradients_keep_in_step() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.act(torch.ones(3, dtype=x.dtype))
            return (self.act(x) * scale * self.act(torch.ones(3, dtype=x.dtype))).sum(1, keepdim=True)

    model = decompose(Detached())
    assert any(isinstance(module, Atom) for module in model.modules())
    x, background = (torch.randn(n, 3, dtype=DOUBLE) for n in (3, 4))
    values = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    f, f0 = (model(each).numpy() for each in (x, background))
    np.testing.assert_allclose(values.sum(1), f - f0.mean(0), rtol=0, atol=1e-13)


def test_any_permutation_of_dimensions() -> None:
    class Permuted(nn.Module):
        def __init__(self, order: tuple[int, ...]) -> None:
            super().__init__()
            self.order = order
            self.back = tuple(int(k) for k in np.argsort(order))

        def forward(self, x: Tensor) -> Tensor:
            h = x.permute(self.order)
            h = torch.tanh(h) * torch.sigmoid(h).flatten(0, 1).view(h.shape)
            return h.permute(self.back).flatten(1).sum(1, keepdim=True)

    x, background = (torch.randn(n, 4, 8, dtype=DOUBLE) for n in (2, 4))
    for order in itertools.permutations(range(3)):
        model = decompose(Permuted(order))
        assert additivity(by_shap(model, x, background), model, x, background) <= 1e-13
