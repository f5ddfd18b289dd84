"""Values reach code by ways that are no arguments: they vary all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

from rewriter import DeepExplainer, Report, decompose

# Sums of a few hundred float64 numbers of size 1.
EXACT = 1e-12
#: A place outside of all modules.
KEPT: list[Tensor] = []


class Scale(nn.Module):
    """Divides by a statistic that it keeps, and multiplies by it later; torch.fx cannot follow it."""

    def forward(self, x: Tensor, back: bool = False) -> Tensor:
        if back:
            return x * self.kept()
        self.keep(x.square().mean(1, keepdim=True).sqrt())
        return x / self.kept()

    def keep(self, statistic: Tensor) -> None:
        self.statistic = statistic

    def kept(self) -> Tensor:
        return self.statistic


class InAList(Scale):
    def keep(self, statistic: Tensor) -> None:
        self.notes: list[Tensor] = [statistic]

    def kept(self) -> Tensor:
        return self.notes[0]


class Outside(Scale):
    def keep(self, statistic: Tensor) -> None:
        KEPT[:] = [statistic]

    def kept(self) -> Tensor:
        return KEPT[0]


class Around(nn.Module):
    """A graph around both calls, with a statistic that comes from a graph's operations, too."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale
        self.gru, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.gru(self.scale(2 * x))[0])
        y: Tensor = self.head(self.scale(h, back=True)[:, -1])
        return y


class Hooked(nn.Module):
    """A hook keeps what a layer gives, for other code to multiply with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        self.gate = Gate(self.first)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.gate(torch.tanh(self.first(x))))
        return y[:, -1]


class Gate(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}
        layer.register_forward_hook(self.see)

    def see(self, _: nn.Module, args: Any, output: Tensor) -> None:
        self.seen["gate"] = output

    def forward(self, x: Tensor) -> Tensor:
        return x * self.seen["gate"] if x.dim() > 1 and x.sum() < 1e9 else x


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attribute": lambda: Around(Scale()),
    "list": lambda: Around(InAList()),
    "module level": lambda: Around(Outside()),
    "hook": Hooked,
}


@pytest.mark.filterwarnings("ignore:Setting .*hooks:UserWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("explain", ["ours", "shap", "captum"])
def test_sums_are_exact(name: str, explain: str) -> None:
    model = MODELS[name]().double().eval()
    x, background = torch.randn(3, 5, 3).double(), torch.randn(4, 5, 3).double()
    with torch.no_grad():
        expected = (model(x) - model(background).mean(0)).numpy()
    rewritten = decompose(model)
    assert "" not in Report.of(rewritten).islands
    if explain == "ours":
        values = DeepExplainer(model, background).shap_values(x)
    elif explain == "shap":
        values = shap.DeepExplainer(rewritten, background).shap_values(x)
    else:
        repeated = x.repeat_interleave(4, 0).requires_grad_()
        references = background.repeat(3, 1, 1).requires_grad_()
        outputs = [DeepLift(rewritten).attribute(repeated, references, target=k) for k in range(2)]
        values = torch.stack(outputs, -1).view(3, 4, 5, 3, 2).mean(1).detach().numpy()
    assert np.abs(values.sum((1, 2)) - expected).max() < EXACT
