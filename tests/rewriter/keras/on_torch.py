"""What is true of Keras' models on the torch backend; test_on_torch.py runs it in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import pytest
import torch
from torch import fx, nn

import rewriter
from rewriter.keras import load, to_torch

L = keras.layers
keras.utils.set_random_seed(0)


def sequential(*layers: Any, shape: tuple[int | None, ...] = (None, 3)) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


def change(model: Callable[..., Any], x: Any, background: Any) -> Any:
    return (model(x) - model(background).mean(0)).detach().double()


def assert_additive(model: Any, x: Any, background: Any) -> None:
    explainer = rewriter.DeepExplainer(model, background, progress=False)
    values = torch.from_numpy(explainer.shap_values(x)).flatten(1, 2).sum(1)
    assert torch.allclose(values, change(model, x, background), atol=1e-6)


def becomes_one_graph_with_its_weights_and_stays_as_it_is() -> None:
    model = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dense(2))
    before = {name: id(each) for name, each in model.named_modules()}
    x = torch.randn(3, 5, 3)
    rolled = rewriter.decompose(model)
    assert isinstance(rolled, fx.GraphModule)
    assert torch.allclose(rolled(x), model(x), atol=1e-6)
    report = rolled.report
    assert [each.parameters for each in report.layers] == ["shared", "shared"]
    assert [each.kind for each in report.layers] == ["Bidirectional", "GRU"]
    assert [each.name for each in report.layers] == [each.name for each in model.layers[:2]]
    assert [each.atoms for each in report.layers] == [16, 5]
    assert not report.islands
    assert report.proven.runs
    assert {name: id(each) for name, each in model.named_modules()} == before
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(weight * 1.5)
    assert torch.allclose(rolled(x), model(x), atol=1e-6)
    flat = rewriter.decompose(model, x)
    assert sum("tanh" in node.name for node in flat.graph.nodes) >= 5 * 5
    equal = rewriter.check_equivalence(model, flat, x, tolerances={torch.float32: 1e-5})
    assert equal.equal, equal


def explanations_follow_the_weights() -> None:
    model = sequential(L.Masking(), L.LSTM(4), L.Dense(2), shape=(6, 3))
    x, background = torch.randn(3, 6, 3), torch.randn(4, 6, 3)
    x[0, 3:] = 0
    explainer = rewriter.DeepExplainer(model, background, progress=False)
    explainer.shap_values(x)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * -2)
    values = torch.from_numpy(explainer.shap_values(x)).flatten(1, 2).sum(1)
    assert torch.allclose(values, change(model, x, background), atol=1e-6)


class Custom(keras.Layer):  # type: ignore[misc]  # Keras is Any
    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return torch.tanh(x * self.scale)


def a_layer_of_the_users_runs_by_its_own_code() -> None:
    model = sequential(L.GRU(4, return_sequences=True), Custom(name="mine"), L.LSTM(3), L.Dense(2))
    report: Any = rewriter.decompose(model).report
    assert list(report.islands) == ["mine"]
    assert_additive(model, torch.randn(2, 5, 3), torch.randn(3, 5, 3))


def a_users_replacement_comes_first() -> None:
    class Cheap(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.scale = layer.scale.value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x * self.scale)

    model = sequential(L.GRU(4), Custom(), L.Dense(2))
    made = rewriter.decompose(model, torch.randn(2, 5, 3), replacements={Custom: Cheap})
    assert not made.report.islands


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = L.Bidirectional(L.GRU(3))
        self.head = L.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.recurrent(x))


class WithTorch(Subclassed):
    def call(self, x: Any) -> Any:
        out = self.recurrent(x)
        return self.head(torch.relu(out) if isinstance(out, torch.Tensor) else out)


def a_model_of_the_users_class_is_a_graph_where_keras_can_follow_it() -> None:
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    model = Subclassed()
    model(x)
    assert isinstance(rewriter.decompose(model, x), fx.GraphModule)
    assert_additive(model, x, background)
    # What keras follows is not what runs here; that is found, and the model's own code is kept.
    other = WithTorch()
    other(x)
    assert_additive(other, x, background)


def a_layer_of_keras_is_explained() -> None:
    model = sequential(L.LSTM(4, return_sequences=True), L.GRU(3), L.Dense(2), shape=(5, 3))
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    for to_input, shape in ((True, (2, 5, 4, 2)), (False, (2, 3, 2))):
        explainer = rewriter.DeepExplainer(
            (model, model.layers[1]), background, attribute_to_layer_input=to_input, progress=False
        )
        values = torch.from_numpy(explainer.shap_values(x))
        assert values.shape == shape
        total = values.reshape(2, -1, 2).sum(1)
        assert torch.allclose(total, change(model, x, background), atol=1e-6)


def several_inputs_are_explained_one_by_one() -> None:
    a, b = keras.Input((4, 3)), keras.Input((2,))
    model = keras.Model([a, b], L.Dense(2)(L.Concatenate()([L.LSTM(3)(a), b])))
    inputs, background = ([torch.randn(n, 4, 3), torch.randn(n, 2)] for n in (2, 3))
    values = rewriter.DeepExplainer(model, background, progress=False).shap_values(inputs)
    total = torch.stack([torch.from_numpy(each).flatten(1, -2).sum(1) for each in values]).sum(0)
    expected = (model(inputs) - model(background).mean(0)).detach().double()
    assert torch.allclose(total, expected, atol=1e-6)
    assert rewriter.decompose(model)(inputs).shape == (2, 2)


def exports_with_loops_and_any_length() -> None:
    import onnxruntime

    model = sequential(L.GRU(4, return_sequences=True), L.LSTM(3, activation="elu"), L.Dense(2))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        axes = {"args_0": {0: "batch", 1: "steps"}}
        rewriter.export_onnx(model, torch.randn(3, 5, 3), path, loops=True, dynamic_axes=axes)
        session = onnxruntime.InferenceSession(path)
        x = torch.randn(2, 9, 3)
        [got] = session.run(None, {"args_0": x.numpy()})
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-6)
        model.save(f"{folder}/model.keras")
        assert torch.allclose(load(f"{folder}/model.keras")(x), model(x), atol=1e-6)


def a_layer_by_itself_is_decomposed() -> None:
    layer = L.LSTM(4, return_sequences=True)
    x = torch.randn(2, 5, 3)
    layer(x)
    made = rewriter.decompose(layer, x)
    assert torch.allclose(made(x), layer(x), atol=1e-6)
    assert to_torch(layer).batch_first


def what_is_changed_later_is_followed() -> None:
    model = sequential(L.GRU(4, return_sequences=True), L.LSTM(3), L.Dense(2), L.Dense(2), shape=(5, 3))
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    explainer = rewriter.DeepExplainer(model, background, progress=False)

    def follows() -> None:
        values = torch.from_numpy(explainer.shap_values(x)).flatten(1, 2).sum(1)
        assert torch.allclose(values, change(model, x, background), atol=1e-6)
        expected = model(background).mean(0).detach().numpy()
        assert abs(explainer.expected_value - expected).max() < 1e-6

    follows()
    made = explainer._asked.model
    model(x)
    follows()
    assert explainer._asked.model is made
    model.layers[-2].activation = keras.activations.tanh
    follows()
    model.layers[0].cell.activation = keras.activations.elu
    follows()
    model.pop()
    follows()


class Doubled(L.Dense):  # type: ignore[misc, name-defined]
    def call(self, x: Any, training: Any = None) -> Any:
        return 2 * super().call(x, training)


def what_is_not_followed_is_refused() -> None:
    model = sequential(L.GRU(4), L.Dense(2), shape=(5, 3))
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    explainer = rewriter.DeepExplainer(model, background, progress=False)
    # Nothing is set in it, and it is another function.
    model.layers[-1].__class__ = Doubled
    with pytest.raises(rewriter.RewriteError, match="differs from what the model gives"):
        explainer.shap_values(x)


def a_state_that_moves_is_followed_and_left_as_it_is() -> None:
    model = keras.Sequential([keras.Input(batch_shape=(1, 5, 3)), L.LSTM(4, stateful=True), L.Dense(2)])
    x, background = torch.randn(2, 5, 3), torch.randn(3, 5, 3)
    explainer = rewriter.DeepExplainer(model, background, progress=False)
    variables = model.layers[0].states
    for _ in range(2):
        model(torch.randn(1, 5, 3))
        before = [each.value.detach().clone() for each in variables]
        assert before[0].any()
        values = torch.from_numpy(explainer.shap_values(x)).flatten(1, 2).sum(1)
        rewriter.diagnose(model, x, background)
        assert all(torch.equal(each.value, old) for each, old in zip(variables, before, strict=True))
        rows = []
        for row in torch.cat([x, background]):
            for each, old in zip(variables, before, strict=True):
                each.assign(old)
            rows.append(model(row[None]).detach()[0].double())
        assert torch.allclose(values, torch.stack(rows[:2]) - torch.stack(rows[2:]).mean(0), atol=1e-6)
    for rewrite in (
        lambda: rewriter.decompose(model),
        lambda: rewriter.export_onnx(model, torch.randn(1, 5, 3), "nothing.onnx"),
    ):
        before = [each.value.detach().clone() for each in variables]
        with pytest.raises(rewriter.RewriteError, match=r"lstm.*each call moves its state"):
            rewrite()
        assert all(torch.equal(each.value, old) for each, old in zip(variables, before, strict=True))


def diagnosis_names_layers_and_measures_stock_shap() -> None:
    if importlib.util.find_spec("shap") is None:
        return
    import shap

    model = sequential(L.Dense(6), L.ReLU(), L.LSTM(4, name="recurrent"), L.ELU(), L.Dense(2), shape=(5, 3))
    x, background = torch.randn(1, 5, 3), torch.randn(4, 5, 3)
    found = rewriter.diagnose(model, x, background)
    stock = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    error = torch.from_numpy(stock).double().flatten(1, 2).sum(1) - change(model, x, background)
    assert abs(found.total - float(error.abs().max())) < 1e-5 * found.scale
    assert {each.name: each.operation for each in found.broken}["recurrent"] == "LSTM"
    assert all("exact rules" in each.advice for each in found.broken)


def a_convolutional_lstm_is_that_many_lstms() -> None:
    """With a kernel of one place each place has an LSTM of the same weights."""
    wide = {"dtype": "float64"}
    convolved = L.ConvLSTM1D(3, 1, recurrent_activation="sigmoid", return_sequences=True, **wide)
    model = keras.Sequential(
        [keras.Input((4, 2, 2), **wide), convolved, L.Flatten(**wide), L.Dense(1, **wide)]
    )
    plain = L.LSTM(3, return_sequences=True, **wide)
    other = keras.Sequential([keras.Input((4, 2), **wide), plain, L.Flatten(**wide), L.Dense(1, **wide)])
    kernel, recurrent, bias = convolved.get_weights()
    plain.set_weights([kernel[0], recurrent[0], bias])
    weight, head_bias = model.layers[-1].get_weights()
    x, background = torch.randn(2, 4, 2, 2).double(), torch.randn(3, 4, 2, 2).double()
    got = rewriter.DeepExplainer(model, background, progress=False).shap_values(x)
    for place in range(2):
        own = weight.reshape(4, 2, 3)[:, place].reshape(12, 1)
        other.layers[-1].set_weights([own, head_bias])
        explainer = rewriter.DeepExplainer(other, background[:, :, place], progress=False)
        expected = explainer.shap_values(x[:, :, place])
        # Sums in another order, of some hundred products.
        assert abs(got[:, :, place] - expected).max() < 1e-12 * abs(expected).max()


class OwnCell(keras.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.state_size, self.calls = 3, 0

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 3))
        self.count = self.add_weight(shape=(), trainable=False, initializer="zeros")

    def call(self, x: Any, states: Any) -> Any:
        self.calls += 1
        self.count.assign(self.count + 1)
        h = keras.ops.tanh(x @ self.kernel + 0.5 * states[0])
        return h, [h]


def counts_of(cell: Any) -> list[Any]:
    return [getattr(cell, "calls", 0), *(each.value.tolist() for each in cell.non_trainable_variables)]


def stacked_cells_are_explained_the_users_own_by_its_code() -> None:
    for cells in ([L.LSTMCell(3), L.GRUCell(2)], [OwnCell(), L.GRUCell(2)]):
        model = sequential(L.RNN(cells), L.Dense(2), shape=(4, 3))
        x, background = torch.randn(2, 4, 3), torch.randn(3, 4, 3)
        before = counts_of(cells[0])
        explainer = rewriter.DeepExplainer(model, background, progress=False)
        explainer.shap_values(x)
        rewriter.decompose(model, x)
        assert counts_of(cells[0]) == before
        assert torch.allclose(rewriter.decompose(model)(x), model(x), atol=1e-6)
        assert_additive(model, x, background)


def half_precision_is_refused_by_layer() -> None:
    model = sequential(L.GRU(3, dtype="mixed_float16", name="half"), L.Dense(2), shape=(4, 3))
    x = torch.randn(2, 4, 3)
    for ask in (
        lambda: rewriter.DeepExplainer(model, x),
        lambda: rewriter.decompose(model),
        lambda: rewriter.diagnose(model, x, x),
    ):
        with pytest.raises(rewriter.RewriteError, match=r"half \(GRU.*\): it computes in float16"):
            ask()


CLAIMS = [
    becomes_one_graph_with_its_weights_and_stays_as_it_is,
    explanations_follow_the_weights,
    a_layer_of_the_users_runs_by_its_own_code,
    a_users_replacement_comes_first,
    a_model_of_the_users_class_is_a_graph_where_keras_can_follow_it,
    a_layer_of_keras_is_explained,
    several_inputs_are_explained_one_by_one,
    exports_with_loops_and_any_length,
    a_layer_by_itself_is_decomposed,
    what_is_changed_later_is_followed,
    what_is_not_followed_is_refused,
    a_state_that_moves_is_followed_and_left_as_it_is,
    diagnosis_names_layers_and_measures_stock_shap,
    a_convolutional_lstm_is_that_many_lstms,
    stacked_cells_are_explained_the_users_own_by_its_code,
    half_precision_is_refused_by_layer,
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    for claim in CLAIMS:
        try:
            claim()
            print(f"{claim.__name__}: holds")
        except Exception:
            print(f"{claim.__name__}: {traceback.format_exc()}".replace("\n", "\\n"))
