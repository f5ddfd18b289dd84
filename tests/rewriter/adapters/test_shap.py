"""Stock shap.DeepExplainer is exact on what decompose returns, and leaves the model as it found it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import shap
import torch
from torch import nn

from rewriter import decompose, register_shap
from tests.support.models import gallery
from tests.support.models.recurrent_models import OPTIONS, CellState, Packs, TimeFirst
from tests.support.watching import snapshot

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

# Relative to max(1, max |f|), what the library promises.
ADDITIVITY = {torch.float32: 1e-6, torch.float64: 1e-11}


def additivity_error(model: nn.Module, x: Any, background: Any) -> float:
    """Return the worst |sum of attributions - (f(x) - mean f(background))| over max(1, |f|)."""
    explainer = shap.DeepExplainer(model, background)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = explainer.shap_values(x, check_additivity=False)
    parts = values if isinstance(values, list) else [values]
    inputs, references = (v if isinstance(v, list) else [v] for v in (x, background))
    model = model.eval()
    with torch.no_grad():
        f, f0 = model(*inputs).double(), model(*references).double().mean(0)
    total = sum(part.reshape(len(f), -1, f.shape[1]).sum(1) for part in parts)
    return float(np.abs(total - (f - f0).numpy()).max() / max(1.0, f.abs().max().item()))


@pytest.mark.parametrize("dtype", ADDITIVITY, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_additive(option: str, dtype: torch.dtype) -> None:
    kind, options = OPTIONS[option]
    model = gallery.Classifier(kind, **options).to(dtype)
    for steps in (1, 2, 12):
        x, background = torch.randn(2, steps, 3, dtype=dtype), torch.randn(3, steps, 3, dtype=dtype)
        assert additivity_error(decompose(model), x, background) <= ADDITIVITY[dtype]
    flat = decompose(model, x)
    assert additivity_error(flat, x, background) <= ADDITIVITY[dtype]


@pytest.mark.parametrize("dtype", ADDITIVITY, ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_additive_over_200_steps(kind: str, dtype: torch.dtype) -> None:
    model = gallery.Classifier(kind).to(dtype)
    x, background = torch.randn(1, 200, 3, dtype=dtype), torch.randn(2, 200, 3, dtype=dtype)
    assert additivity_error(decompose(model), x, background) <= ADDITIVITY[dtype]


def test_stock_shap_alone_is_wrong() -> None:
    model = gallery.Classifier("GRU")
    explainer = shap.DeepExplainer(model, torch.randn(3, 12, 3))
    x = torch.randn(2, 12, 3)
    with pytest.warns(UserWarning, match="unrecognized nn.Module: GRU"):
        values = explainer.shap_values(x, check_additivity=False)
    f = model(x).detach().numpy() - explainer.expected_value
    assert np.abs(values.sum((1, 2)) - f).max() > 1e-3


@pytest.mark.parametrize("dtype", ADDITIVITY, ids=str)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTMCell", {}),
        ("GRUCell", {}),
        ("RNNCell", {}),
        ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_cells_with_several_inputs(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = CellState(kind, **options).to(dtype)
    sizes = (3, 2, 2) if kind == "LSTMCell" else (3, 2)
    x, background = ([torch.randn(n, size, dtype=dtype) for size in sizes] for n in (2, 5))
    assert additivity_error(decompose(model), x, background) <= ADDITIVITY[dtype]


@pytest.mark.parametrize("dtype", ADDITIVITY, ids=str)
def test_cell_in_a_loop_and_other_islands(dtype: torch.dtype) -> None:
    for model in (gallery.ReadsLength(), gallery.ValueControlFlow(), gallery.TwoNames()):
        x, background = torch.randn(2, 6, 3, dtype=dtype), torch.randn(3, 6, 3, dtype=dtype)
        output = nn.Flatten() if isinstance(model, gallery.TwoNames) else nn.Identity()
        rewritten = decompose(nn.Sequential(model.to(dtype), output))
        assert additivity_error(rewritten, x, background) <= ADDITIVITY[dtype]


def test_packed_inside_the_model() -> None:
    x, background = torch.randn(2, 6, 3), torch.randn(3, 6, 3)
    assert additivity_error(decompose(Packs()), x, background) <= ADDITIVITY[torch.float32]


def test_atoms_see_the_batch_first() -> None:
    model = TimeFirst().double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    assert additivity_error(decompose(model), x, background) <= ADDITIVITY[torch.float64]


def test_rolled_flat_and_split_give_the_same_values() -> None:
    model = gallery.Classifier("LSTM", bidirectional=True).double()
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    expected = shap.DeepExplainer(decompose(model), background).shap_values(x)
    for other in (decompose(model, x), decompose(model, gates="split"), decompose(model, x, gates="split")):
        # The same sums in another order.
        np.testing.assert_allclose(shap.DeepExplainer(other, background).shap_values(x), expected, atol=1e-14)


def test_ranked_outputs_and_stock_additivity_check() -> None:
    rewritten = decompose(gallery.Classifier())
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    explainer = shap.DeepExplainer(rewritten, background)
    everything = explainer.shap_values(x)
    # Its own check compares ranked attributions with outputs that are not ranked.
    ranked, indexes = explainer.shap_values(x, ranked_outputs=1, check_additivity=False)
    for row, index in enumerate(indexes[:, 0]):
        np.testing.assert_allclose(ranked[row, ..., 0], everything[row, ..., index], atol=1e-7)


def test_interim_layer() -> None:
    rewritten = decompose(nn.Sequential(nn.Linear(3, 6), gallery.Widened("GRU")).double())
    x, background = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (2, 3))
    before = snapshot(rewritten)
    explainer = shap.DeepExplainer((rewritten, rewritten.get_submodule("1.norm")), background)
    values = explainer.shap_values(x, check_additivity=False)
    assert snapshot(rewritten) == before
    f = (rewritten(x) - rewritten(background).mean(0)).detach().numpy()
    part = values[0] if isinstance(values, list) else values
    np.testing.assert_allclose(part.sum((1, 2)), f, rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [gallery.Classifier, gallery.ValueControlFlow], ids=["fx", "islands"])
@pytest.mark.parametrize("training", [True, False])
def test_model_is_as_before(make: type[nn.Module], training: bool) -> None:
    head = nn.Sequential(make(), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Linear(2, 2)).train(training)
    rewritten = decompose(head)
    x, background, wrong = torch.randn(2, 5, 3), torch.randn(3, 5, 3), torch.randn(2, 5, 7)
    rewritten(x).sum().backward()
    keys = list(rewritten.state_dict())
    before, gradients = snapshot(rewritten), [p.grad.clone() for p in rewritten.parameters()]
    explainer = shap.DeepExplainer(rewritten, background)
    explainer.shap_values(x)
    assert snapshot(rewritten) == before
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        explainer.shap_values(wrong)
    with pytest.raises(AssertionError, match="Expected a single tensor"):
        explainer.shap_values([x])
    assert snapshot(rewritten) == before
    assert list(rewritten.state_dict()) == keys
    for p, gradient in zip(rewritten.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)


class Explodes(nn.Module):
    """Fails in the backward pass, in the midst of an explanation."""

    armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and self.armed:
            x.register_hook(self.explode)
        return x

    @staticmethod
    def explode(_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


def test_interrupt_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten = decompose(nn.Sequential(nn.Linear(3, 3), Explodes(), gallery.Classifier(), nn.Sigmoid()))
    explainer = shap.DeepExplainer(rewritten, torch.randn(3, 5, 3))
    x = torch.randn(2, 5, 3)
    monkeypatch.setattr(Explodes, "armed", True)
    before = snapshot(rewritten)
    with pytest.raises(KeyboardInterrupt):
        explainer.shap_values(x)
    assert snapshot(rewritten) == before


def test_dropout_is_off_while_explaining_a_model_in_training_mode() -> None:
    model = gallery.Classifier("LSTM", num_layers=2, dropout=0.9).train()
    rewritten = decompose(model)
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    assert additivity_error(rewritten, x, background) <= ADDITIVITY[torch.float32]


def test_foreign_models_get_stock_behaviour() -> None:
    register_shap()
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    explainer = shap.DeepExplainer(model, torch.randn(3, 3))
    assert not model.training
    explainer.shap_values(torch.randn(2, 3))


class Normalize(nn.Module):
    """A user's own layer, nonlinear, called as one of ours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (1 + x.abs())


def test_the_table_of_shap_stays_as_it_is() -> None:
    from shap.explainers._deep.deep_pytorch import op_handler

    register_shap()
    before = dict(op_handler)
    explainer = shap.DeepExplainer(decompose(nn.Sequential(Normalize(), nn.Tanh())), torch.randn(3, 3))
    assert not {"Normalize", "TanhAtom", "SequenceBegin", "Mul"} & op_handler.keys()
    explainer.shap_values(torch.randn(2, 3))
    assert op_handler == before


def test_a_class_of_the_users_is_warned_of_whatever_it_is_called() -> None:
    foreign = shap.DeepExplainer(nn.Sequential(nn.Linear(3, 3), Normalize()), torch.randn(3, 3))
    with pytest.warns(UserWarning, match="unrecognized nn.Module: Normalize"):
        foreign.shap_values(torch.randn(2, 3), check_additivity=False)
    model = nn.Sequential(nn.Tanh(), Normalize())
    # What has hooks is one node, into which nobody looks.
    model[1].register_forward_hook(lambda *_: None)
    ours = shap.DeepExplainer(decompose(model), torch.randn(3, 3))
    with pytest.warns(UserWarning, match="unrecognized nn.Module: Normalize") as warned:
        ours.shap_values(torch.randn(2, 3), check_additivity=False)
    assert {str(each.message) for each in warned} == {"unrecognized nn.Module: Normalize"}


ORDERS = {
    "rewriter first": "import rewriter, shap",
    "shap first": "import shap, rewriter",
    "shap's backend first": "import shap.explainers._deep.deep_pytorch, rewriter",
    "shap after decompose": "import rewriter",
    "explainer made before rewriter": "import torch, shap; shap.DeepExplainer(torch.nn.Sequential("
    "torch.nn.Flatten(), torch.nn.Linear(15, 2)), torch.zeros(2, 5, 3)); import rewriter",
}
EXPLAINED = """
x = torch.randn(2, 5, 3)
explainer = shap.DeepExplainer(model, torch.randn(3, 5, 3))
warnings.simplefilter("error", UserWarning)
values = explainer.shap_values(x)
gap = values.sum((1, 2)) - (model(x).detach().numpy() - explainer.expected_value)
assert abs(gap).max() < 1e-6, gap
"""
PROGRAM = """
import warnings; warnings.simplefilter("ignore")
{imports}
import torch
model = torch.nn.Sequential(torch.nn.LSTM(3, 4, batch_first=True))
class Head(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(3, 4, batch_first=True)
    def forward(self, x):
        return self.rnn(x)[0][:, -1]
model = rewriter.decompose(Head())
import shap
"""


@pytest.mark.parametrize("order", ORDERS)
def test_any_import_order(order: str) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM.format(imports=ORDERS[order]) + EXPLAINED], check=True)


def test_unpickled_in_a_process_that_never_imports_rewriter(tmp_path: Any) -> None:
    file = tmp_path / "model.pt"
    torch.save(decompose(gallery.Classifier()), file)
    program = f"""
import warnings; warnings.simplefilter("ignore")
import torch, shap
model = torch.load({str(file)!r}, weights_only=False)
"""
    subprocess.run([sys.executable, "-c", program + EXPLAINED], check=True)
