"""What users read when something is refused: where, what to do, and nothing of torch's beside it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# What is traced here would import it while torch's functions are recorded, and other tests export with it.
import torch._dynamo
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from passes.errors import DeclinedError
from rewriter import (
    DeepExplainer,
    RewriteError,
    check_equivalence,
    decompose,
    diagnose,
    export_onnx,
    unroll,
)
from tests.support.silence import silence

X, BACKGROUND = torch.randn(2, 5, 3), torch.randn(4, 5, 3)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.fc = nn.Linear(4, 2)


class Branches(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(x)[0][:, -1]
        return self.fc(y) if float(y.sum()) > -1e9 else -self.fc(y)


class Numpy(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(x)[0][:, -1]
        return self.fc(y + torch.from_numpy(np.abs(y.detach().numpy())).to(y))


class ReadsLengths(Base):
    def forward(self, x: Tensor) -> Tensor:
        lengths = (x.abs().sum(-1) > 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.fc(self.gru(packed)[1][0])


class Fails(Base):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gru(x)[0]
        return y[:, -1] @ self.weight


class GoesByType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0][:, -1]) * (2 if type(self.gru) is nn.GRU else 3)


class MakesLayers(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.GRU(3, 4, batch_first=True)(x)[0][:, -1])


class Unbinds(Base):
    def forward(self, x: Tensor) -> Tensor:
        for step in self.gru(x)[0].unbind(1):
            last = step
        return self.fc(last)


def line(model: type[nn.Module], offset: int) -> str:
    return f"test_messages.py:{model.forward.__code__.co_firstlineno + offset}"


@pytest.mark.parametrize(
    "kind", [Branches, Numpy, ReadsLengths, Fails, GoesByType, MakesLayers, Unbinds], ids=lambda k: k.__name__
)
@pytest.mark.parametrize("entry", ["decompose", "call", "explain", "diagnose", "check", "onnx", "loops"])
def test_nothing_of_torchs_is_printed_or_logged(
    kind: type[nn.Module], entry: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = kind().eval()
    entries: dict[str, Callable[[], Any]] = {
        "decompose": lambda: decompose(model, X),
        "call": lambda: decompose(model)(X),
        "explain": lambda: DeepExplainer(model, BACKGROUND).shap_values(X),
        "diagnose": lambda: diagnose(decompose(model), X, BACKGROUND),
        "check": lambda: check_equivalence(model, decompose(model), X, seeds=2),
        "onnx": lambda: export_onnx(model, X, tmp_path / "m.onnx"),
        "loops": lambda: export_onnx(model, X, tmp_path / "m.onnx", loops=True),
    }
    said = ""
    with silence(capfd):
        try:
            entries[entry]()
        except RewriteError as error:
            said = str(error)
        except RuntimeError:
            # A rewritten model raises what the original does.
            assert (entry, kind) == ("call", Fails)
    for torchs in ("Traceback", "TORCH_LOGS", "While executing", "tlparse", "Caused by:", "eval_with_key"):
        assert torchs not in said


def test_export_names_the_line_that_it_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=re.escape(f"cannot follow the model at {line(Branches, 2)}: ")):
        export_onnx(Branches(), X, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "run",
    [
        lambda model: decompose(model, X),
        lambda model: DeepExplainer(model, BACKGROUND),
        lambda model: diagnose(model, X, BACKGROUND),
        lambda model: check_equivalence(model, model, X),
        lambda model: export_onnx(model, X, "model.onnx"),
    ],
    ids=["decompose", "explain", "diagnose", "check", "onnx"],
)
def test_inputs_that_do_not_run_are_told_with_the_line(run: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(RewriteError, match=re.escape(f"in the model itself ({line(Fails, 2)})")):
        run(Fails())


def test_what_depends_on_types_is_told_at_the_first_call_too() -> None:
    advice = r"GoesByType computes something else.*write isinstance\(layer, nn.GRU\), not type\(layer\) is"
    for run in (lambda model: decompose(model, X), lambda model: decompose(model)(X)):
        with pytest.raises(RewriteError, match=advice):
            run(GoesByType())


def test_the_advice_on_types_works() -> None:
    class GoesByInstance(GoesByType):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x)[0][:, -1]) * (2 if isinstance(self.gru, nn.GRU) else 3)

    assert decompose(GoesByInstance(), X).report.proven


def test_a_layer_that_is_made_in_forward_is_told_with_its_line() -> None:
    with pytest.raises(RewriteError, match=re.escape(f"own gru at {line(MakesLayers, 1)}, in a layer that")):
        decompose(MakesLayers(), X)


def test_a_length_that_code_fixes_is_told(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match="loops=False"):
        export_onnx(Unbinds(), X, tmp_path / "m.onnx", loops=True)
    assert export_onnx(Unbinds(), X, tmp_path / "m.onnx", loops=False).size


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.GRU(3, 4, batch_first=True), "weight_hh_l0")


def spectrally_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(nn.GRU(3, 4, batch_first=True), "weight_hh_l0")


def pruned() -> nn.Module:
    layer = nn.GRU(3, 4, batch_first=True)
    prune.random_unstructured(layer, "weight_hh_l0", 0.5)
    prune.random_unstructured(layer, "weight_ih_l0", 0.5)
    return layer


def parametrized() -> nn.Module:
    layer = nn.GRU(3, 4, batch_first=True)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrizations.orthogonal(layer, "weight_ih_l0")
    return layer


def dropped() -> nn.Module:
    """As libraries with dropout of weights leave a layer."""
    layer = nn.GRU(3, 4, batch_first=True)
    weight = layer.weight_hh_l0
    del layer.weight_hh_l0
    layer.register_parameter("weight_hh_l0_raw", nn.Parameter(weight.detach()))
    layer.weight_hh_l0 = 0.9 * weight.detach()
    return layer


class Encoder(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


class Model(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.encoder = Encoder(rnn)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make", [weight_normed, spectrally_normed, pruned, parametrized, dropped], ids=lambda make: make.__name__
)
def test_the_advice_on_computed_weights_works_when_it_is_copied(make: Callable[[], nn.Module]) -> None:
    model = Model(make()).eval()
    with pytest.raises(DeclinedError) as caught:
        decompose(model)
    (decline,) = caught.value.declines
    made = f"test_messages.py:{Encoder.__init__.__code__.co_firstlineno + 2}"
    assert str(decline).startswith(f"encoder.rnn (GRU, made at {made}): ") or "Parametrized" in decline.kind
    assert decline.source == made
    expected = model(X)
    code = decline.reason.partition("layer being this module: ")[2]
    assert code
    exec(code, {"torch": torch, "layer": model.get_submodule(decline.name)})  # as a user types it
    assert not parametrize.is_parametrized(model.encoder.rnn)
    rewritten = decompose(model)
    assert rewritten.report.layers[0].name == "encoder.rnn"
    torch.testing.assert_close(rewritten(X), expected)
    assert DeepExplainer(model, BACKGROUND).shap_values(X).shape == (2, 5, 3, 2)


def test_advice_is_what_can_be_followed_where_it_is_read(tmp_path: Path) -> None:
    model = Model(pruned()).eval()
    with pytest.raises(DeclinedError, match="pass strict=False to keep them as they are"):
        decompose(model)
    assert decompose(model, strict=False).report.declines
    with pytest.raises(DeclinedError, match=r"unroll\(decompose\(model, strict=False\), \.\.\.\)"):
        unroll(model, X)
    torch.testing.assert_close(unroll(decompose(model, strict=False), X)(X), model(X))
    for refuse in (
        lambda: DeepExplainer(model, BACKGROUND),
        lambda: DeepExplainer(decompose(model, strict=False), BACKGROUND),
        lambda: export_onnx(model, X, tmp_path / "m.onnx"),
    ):
        with pytest.raises(DeclinedError, match="Mend them, then") as caught:
            refuse()
        assert "strict=False" not in str(caught.value)
    with pytest.raises(DeclinedError, match="diagnose"):
        DeepExplainer(model, BACKGROUND)
    assert diagnose(model, X, BACKGROUND).broken


class OwnAlgebra(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return torch.tanh(input), None


class OwnModule(nn.Module):
    def forward(self, input: Tensor) -> Any:
        return torch.tanh(input), None


def test_a_class_of_its_own_is_rewritten_as_what_it_is() -> None:
    with pytest.raises(DeclinedError, match=r"derive it from nn\.Module: then its own code is rewritten"):
        decompose(OwnAlgebra(3, 3))
    assert decompose(OwnModule(), X).report.operations


class CallsKernel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.gru_cell(x, x, torch.zeros(9, 3), torch.zeros(9, 3))


def test_a_direct_call_of_a_kernel_is_told_with_its_line() -> None:
    said = f"CallsKernel.forward calls torch.gru_cell ({line(CallsKernel, 1)}), which cannot be rewritten"
    with pytest.raises(DeclinedError, match=re.escape(said)):
        decompose(CallsKernel())


def test_a_replaced_forward_can_be_put_around_the_layer() -> None:
    layer = nn.GRU(3, 4, batch_first=True)
    layer.forward = lambda x: x  # type: ignore[assignment,method-assign]
    with pytest.raises(DeclinedError, match=r"del layer\.forward"):
        decompose(layer)
    del layer.forward
    assert decompose(layer).report.layers
