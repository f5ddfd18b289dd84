"""What torch refuses once gradients are asked for, or hides, is named; nothing of the user's changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose


class Computes(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gru, self.compute = nn.GRU(2, 2, batch_first=True), compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.gru(x)[0]).flatten(1)


def _steps_in_place(x: Tensor) -> Tensor:
    h = x + 0
    for step in h.unbind(1):
        step.sigmoid_()
    return h


def _by_numpy(x: Tensor) -> Tensor:
    return x * torch.from_numpy(np.tanh(x.numpy()))


REFUSED = {
    "no derivative": (
        lambda x: torch.special.zeta(x.abs() + 2, torch.ones(()).to(x)),
        r"zeta' is not implemented\.; without a rule: .*zeta \(test_refused_by_torch\.py:\d+\)",
    ),
    "views in place": (
        _steps_in_place,
        r"explaining fails in .*\(test_refused_by_torch\.py:\d+\): RuntimeError",
    ),
}


@pytest.mark.parametrize("branch", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_gradient_is_named(name: str, branch: bool) -> None:
    compute, message = REFUSED[name]
    model = Computes(lambda x: compute(x) if not branch or x.sum() < 1e9 else x).eval()
    explainer = DeepExplainer(model, torch.randn(4, 3, 2))
    with pytest.raises(RewriteError, match=message):
        explainer.shap_values(torch.randn(2, 3, 2))


@pytest.mark.parametrize("compute", [_steps_in_place, _by_numpy])
def test_what_runs_without_gradients_alone_is_decomposed(compute: Callable[[Tensor], Tensor]) -> None:
    model, x = Computes(compute).double().eval(), torch.randn(4, 3, 2).double()
    with torch.no_grad():
        rewritten = decompose(model, x)
        # The layer's own sums, in another order.
        torch.testing.assert_close(rewritten(x), model(x), rtol=0, atol=1e-14)
    assert rewritten.report.proven.runs


scripts = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Scripted(nn.Module):
    """Holds a module of which there is no code of Python's."""

    def __init__(self, *, linear: bool) -> None:
        super().__init__()
        inside = nn.Sequential(nn.Linear(2, 2), nn.Identity() if linear else nn.Tanh())
        self.script = torch.jit.script(inside)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.script(x))


@scripts
def test_what_is_scripted_stays_and_is_named() -> None:
    model = Scripted(linear=False).double().eval()
    before, x = model.script.forward, torch.randn(3, 2).double()
    with pytest.raises(RewriteError, match=r"rule is script \(scripted Sequential, .*: has no rule"):
        DeepExplainer(model, torch.randn(4, 2).double()).shap_values(x)
    assert type(model.script.forward) is type(before)
    assert isinstance(model.script, torch.jit.ScriptModule)


@scripts
def test_behind_a_scripted_linear_layer_sums_are_exact() -> None:
    model, x = Scripted(linear=True).double().eval(), torch.randn(3, 2).double()
    background = torch.randn(4, 2).double()
    values = DeepExplainer(model, background).shap_values(x)
    expected = (model(x) - model(background).mean(0)).detach().numpy()
    # Sums of a few float64 numbers of size 1.
    assert np.abs(values.sum(1) - expected).max() < 1e-13


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.div(x, x.abs() + 0.3, rounding_mode="trunc"),
        lambda x: nn.functional.kl_div(x.log_softmax(-1), x.softmax(-1), reduction="none") * 0,
        lambda x: x.softmax(-1).sum(-1, keepdim=True) - 1,
    ],
)
def test_outputs_that_are_zero_to_rounding_are_no_error(compute: Callable[[Tensor], Tensor]) -> None:
    model = Computes(compute).double().eval()
    values = DeepExplainer(model, torch.randn(4, 3, 2).double()).shap_values(torch.randn(2, 3, 2).double())
    assert np.abs(values.sum((1, 2))).max() < 1e-14


class Unused(nn.Module):
    """Of a layer's outputs only the states are used, and what it takes is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm = nn.Linear(2, 2), nn.LSTM(2, 1, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(self.first(x).int().to(x) * 0.5)[1][1]
        return y.transpose(0, 1).flatten(1)


def test_a_cut_in_front_of_states_is_named() -> None:
    explainer = DeepExplainer(Unused().double(), torch.randn(2, 1, 2).double())
    with pytest.raises(RewriteError, match=r"without an exact rule is to \(to, test_refused_by_torch\.py:"):
        explainer.shap_values(9 * torch.randn(3, 1, 2).double())
