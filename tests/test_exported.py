"""Models that torch.fx cannot follow go through torch.export, if that does exactly the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passes.errors import InputError
from passes.export_checks import NotExportedError
from passes.exported import exported
from rewriter import DeepExplainer, decompose
from tests.support import gallery
from tests.support.compare import assert_same_model

shap = pytest.importorskip("shap")


class Attends(nn.Module):
    """An LSTM cell in a loop, attention, activations and a write in place; ``len(x)`` stops torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.norm, self.dropout = nn.LayerNorm(4), nn.Dropout(0.5)
        self.score, self.head = nn.Linear(4, 1), nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        c, states = h, []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            states.append(h)
        states = torch.stack(states, 1)
        weights = F.softmax(self.score(states), 1)
        pooled = self.dropout(self.norm((weights * states).sum(1))) * self.scale
        kept = pooled.clone()
        kept[:, 1:] = F.gelu(pooled)[:, 1:]
        return self.head(kept)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 3, dtype=dtype), torch.randn(4, 5, 3, dtype=dtype)


def test_the_result_is_one_graph_that_computes_the_same() -> None:
    for dtype in (torch.float32, torch.float64):
        model, (x, _) = Attends().to(dtype), data(dtype)
        rewritten = decompose(model, x)
        assert rewritten.report.islands == {}
        assert isinstance(rewritten, torch.fx.GraphModule)
        (layer,) = rewritten.report.layers
        assert (layer.front_end, layer.level) == ("export", "flat")
        assert_same_model(model, rewritten, x)


def test_everything_in_it_has_a_rule() -> None:
    model, (x, background) = Attends().double().eval(), data()
    rewritten = decompose(model, x)
    assert rewritten.report.uncovered == ()
    f = (model(x) - model(background).mean(0)).detach().numpy()
    for values in (
        shap.DeepExplainer(rewritten, background).shap_values(x, check_additivity=False),
        DeepExplainer(rewritten, background).shap_values(x),
    ):
        # Sums of a few hundred terms below 10.
        assert np.abs(values.sum((1, 2)) - f).max() < 1e-12


def test_parameters_are_shared_under_their_names() -> None:
    model = Attends()
    rewritten = decompose(model, data(torch.float32)[0])
    own = dict(model.named_parameters())
    found = dict(rewritten.named_parameters())
    for name in ("norm.weight", "norm.bias", "score.weight", "head.bias"):
        assert found[name] is own[name]
    assert {id(p) for p in found.values()} == {id(p) for p in own.values()}
    assert dict(rewritten.named_buffers())["scale"] is model.scale
    names = rewritten.report.parameter_names["cell.weight_ih"]
    assert found[names[0]] is model.cell.weight_ih


def test_any_number_of_rows_and_no_other_shape() -> None:
    model, (x, _) = Attends().double().eval(), data()
    for example in (x, x[:1]):
        rewritten = decompose(model, example).eval()
        for rows in (1, 2, 7):
            other = torch.randn(rows, 5, 3, dtype=torch.float64)
            torch.testing.assert_close(rewritten(other), model(other), rtol=0, atol=1e-12)
        with pytest.raises(InputError, match=r"x: exported for inputs of shape \(B, 5, 3\), got \(2, 6, 3\)"):
            rewritten(torch.randn(2, 6, 3, dtype=torch.float64))


def test_training_and_evaluation() -> None:
    model, (x, _) = Attends().double(), data()
    rewritten = decompose(model, x)
    for training in (True, False, True):
        model.train(training)
        rewritten.train(training)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        torch.testing.assert_close(rewritten(x), expected, rtol=0, atol=1e-12)


def test_copies_and_pickles() -> None:
    model, (x, _) = Attends().double().eval(), data()
    rewritten = decompose(model, x)
    for other in (copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        assert torch.equal(other(x), rewritten(x))
        assert other.report == rewritten.report


class Structured(nn.Module):
    def forward(self, batch: dict[str, Any], *, scale: Tensor) -> dict[str, Any]:
        first, second = batch["pair"]
        return {"y": (first * second).tanh() * scale if len(first) else first, "t": (second, [first + 1])}


def test_structured_inputs_and_outputs() -> None:
    batch = {"pair": (torch.randn(3, 2), torch.randn(3, 2))}
    graph = exported(Structured(), (batch,), {"scale": torch.randn(2)}, {})
    for rows in (1, 4):
        other, scale = {"pair": (torch.randn(rows, 2), torch.randn(rows, 2))}, torch.randn(2)
        expected, got = Structured()(other, scale=scale), graph(other, scale=scale)
        assert torch.utils._pytree.tree_structure(got) == torch.utils._pytree.tree_structure(expected)
        for a, b in zip(*map(torch.utils._pytree.tree_leaves, (got, expected)), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(InputError, match=r"scale: exported for inputs of shape \(2\), got \(3\)"):
        graph(batch, scale=torch.randn(3))


class Casts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0).to(x.dtype) if len(x) else x


def test_a_dtype_that_was_fixed_is_not_passed_over() -> None:
    graph = exported(Casts(), (torch.randn(3, 2),), {}, {})
    with pytest.raises(InputError, match=r"exported for inputs of torch\.float32, got torch\.float64"):
        graph(torch.randn(3, 2, dtype=torch.float64))


class Runs(nn.Module):
    """Calls a function of the test's in code that reads a length."""

    def __init__(self, function: Callable[[Runs, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.log = function, {}
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x) if len(x) else x


def counts(m: Runs, x: Tensor) -> Tensor:
    m.seen.add_(1)
    return x * m.seen


def remembers(m: Runs, x: Tensor) -> Tensor:
    m.log["x"] = x
    return x * 2


def without_gradients(m: Runs, x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


# What a graph would fix, or lose.
REFUSED: dict[str, Callable[[Runs, Tensor], Any]] = {
    "a branch on a value": lambda m, x: x * 2 if x.sum() > 0 else x,
    "a number": lambda m, x: x * float(x.sum().item()) if x.max().item() > 0 else x,
    "a branch on the batch": lambda m, x: x * 2 if len(x) > 5 else x,
    "the number of rows": lambda m, x: x / float(str(len(x))),
    "training": lambda m, x: x * 2 if m.training else x,
    "batch statistics": lambda m, x: m.norm(x),
    "a buffer that changes": counts,
    "no gradients": without_gradients,
    "an item that is assigned": remembers,
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_graph_would_fix_is_refused(case: str) -> None:
    model, x = Runs(REFUSED[case]), torch.randn(3, 3)
    with pytest.raises(NotExportedError):
        exported(model, (x,), {}, {})
    rewritten = decompose(model, x)
    assert "torch.export: " in rewritten.report.islands[""]
    for rows in (3, 7):
        other = torch.randn(rows, 3)
        assert torch.equal(copy.deepcopy(rewritten).eval()(other), copy.deepcopy(model).eval()(other))


def test_arguments_that_are_not_tensors_are_refused() -> None:
    for given in ((torch.ones(2, 3), None), (torch.ones(2, 3), 2), ()):
        with pytest.raises(NotExportedError, match="not tensors"):
            exported(nn.Identity(), given, {}, {})


def test_only_where_it_is_asked_for() -> None:
    model, (x, _) = Attends(), data(torch.float32)
    assert list(decompose(model).report.islands) == [""]
    assert list(decompose(model, x, scope="recurrent").report.islands) == [""]
    (layer,) = decompose(gallery.Classifier(), x).report.layers
    assert layer.front_end == "fx"


def test_the_model_is_left_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    model, x = Runs(REFUSED["a branch on a value"]), torch.randn(3, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other, attributes = Attends(), sorted(model.__dict__)
    state = torch.get_rng_state()
    decompose(model, x)
    decompose(other, x.expand(2, 3, 3).clone())
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(model.__dict__) == attributes
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")
