"""What cannot be rewritten exactly is declined by name, never approximated."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from passes.errors import DeclinedError
from rewriter import RewriteError, decompose
from tests.support.models import gallery


class OwnAlgebra(nn.LSTM):
    def forward(self, input: Tensor, hx: object = None) -> tuple[Tensor, None]:  # type: ignore[override]
        return input * 2, None


class OverridesMore(nn.GRU):
    def check_forward_args(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> None:
        return None


class OwnCell(nn.RNNCellBase):
    def __init__(self) -> None:
        super().__init__(3, 4, bias=True, num_chunks=1)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(12, 3), torch.zeros(12, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.gru_cell(x, torch.zeros(len(x), 4), *self.weights)


class UsesFlatWeights(nn.LSTM):
    def forward(self, input: Tensor, hx: object = None) -> object:  # type: ignore[override]
        super().forward(input)
        return len(self._flat_weights)


class Clashes(nn.GRU):
    def __init__(self) -> None:
        super().__init__(3, 4)
        self.layer0 = nn.Identity()


def weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")


def pruned() -> nn.Module:
    layer = nn.GRU(3, 4)
    prune.random_unstructured(layer, "weight_hh_l0", 0.5)
    return layer


def replaced_forward() -> nn.Module:
    layer = nn.RNN(3, 4)
    layer.forward = lambda x: x  # type: ignore[assignment]
    return layer


def quantised() -> nn.Module:
    from torch.ao.nn.quantized.dynamic import LSTM

    return LSTM(3, 4)


def scripted() -> nn.Module:
    return torch.jit.script(nn.LSTM(3, 4))


REASONS = {
    "OwnAlgebra": (lambda: OwnAlgebra(3, 4), "does not go through super().forward(...)"),
    "OverridesMore": (lambda: OverridesMore(3, 4), "overrides check_forward_args of nn.GRU"),
    "OwnCell": (OwnCell, "no rule knows its algebra"),
    "Clashes": (Clashes, "its submodule layer0 has a name that the rewrite needs"),
    "functional": (Functional, "Functional.forward calls torch.gru_cell"),
    "weight norm": (weight_norm, "remove_parametrizations(layer, 'weight_hh_l0', leave_parametrized=True)"),
    "pruned": (pruned, "weight_hh_l0 is not a plain nn.Parameter"),
    "replaced": (replaced_forward, "its forward was replaced on the instance"),
    "quantised": (quantised, "is quantised"),
    "scripted": (scripted, "rewrite the Python model that it was scripted from"),
}

# torch announces the end of torch.ao.quantization and of torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning"),
]


@pytest.mark.parametrize("case", REASONS)
def test_reason_and_name(case: str) -> None:
    build, reason = REASONS[case]
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"rnn": build()}), "fine": nn.GRU(3, 4)})
    with pytest.raises(DeclinedError) as caught:
        decompose(model)
    (decline,) = caught.value.declines
    assert decline.name == "encoder.rnn"
    assert reason in decline.reason
    assert f"encoder.rnn ({decline.kind}): " in str(caught.value)
    assert "strict=False" in str(caught.value)
    assert isinstance(caught.value, RewriteError)

    kept = decompose(model, strict=False)
    assert [layer.name for layer in kept.report.layers] == ["fine"]
    assert kept.report.declines == (decline,)
    assert f"declined: {decline}" in str(kept.report)


def test_all_declines_are_listed() -> None:
    model = nn.ModuleList([OwnAlgebra(3, 4), nn.GRU(3, 4), OverridesMore(3, 4)])
    with pytest.raises(DeclinedError) as caught:
        decompose(model)
    assert [decline.name for decline in caught.value.declines] == ["0", "2"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_flat_weights_are_refused() -> None:
    with pytest.raises(RewriteError, match="no flat weights for a fused kernel"):
        decompose(UsesFlatWeights(3, 4))(torch.zeros(2, 3))


def test_declined_layers_still_run() -> None:
    model = nn.Sequential(OwnAlgebra(3, 4))
    x = torch.randn(5, 2, 3)
    assert torch.equal(decompose(model, strict=False)(x)[0], model(x)[0])


def test_wrapping_a_scripted_model_is_declined() -> None:
    with pytest.raises(DeclinedError, match=r"rnn \(LSTM\): is a scripted module"):
        decompose(torch.jit.script(gallery.Classifier()))


@pytest.mark.parametrize("value", [None, 1, "model", nn.GRU, lambda x: x])
def test_not_a_module(value: Any) -> None:
    with pytest.raises(RewriteError, match=r"expected a torch\.nn\.Module, got"):
        decompose(value)


def test_unknown_gates() -> None:
    with pytest.raises(RewriteError, match="expected 'fused' or 'split', got 'joined'"):
        decompose(nn.GRU(3, 4), gates="joined")  # type: ignore[arg-type]
