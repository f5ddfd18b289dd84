"""Torch modules of Keras' layers compute what Keras computes, on TensorFlow where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import rewriter
from passes.errors import DeclinedError, RewriteError
from rewriter.keras import to_torch
from rewriter.keras.agreement import check_agreement
from tests.support.keras_models import keras, outputs, rows, sequential, with_random_weights

L = keras.layers
# float32 in two orders of summation, over a handful of layers.
CLOSE = 1e-6

MODELS: dict[str, Callable[[], Any]] = {
    "activations": lambda: sequential(
        L.Dense(4, "gelu"),
        L.LeakyReLU(0.1),
        L.ELU(0.5),
        L.ReLU(2.0, 0.1, 0.2),
        L.PReLU(),
        L.Dense(3, "softmax"),
    ),
    "more activations": lambda: sequential(
        *(L.Dense(3, each) for each in ("silu", "hard_sigmoid", "softplus", "mish", "exponential", "selu"))
    ),
    "convolutions": lambda: sequential(
        L.Conv1D(4, 3, padding="same", activation="relu"),
        L.BatchNormalization(),
        L.DepthwiseConv1D(3, depth_multiplier=2),
        L.SeparableConv1D(3, 2),
        L.MaxPooling1D(2),
        L.Flatten(),
    ),
    "causal and strided": lambda: sequential(
        L.Conv1D(4, 3, padding="causal", dilation_rate=2),
        L.Conv1D(3, 3, strides=2, padding="same"),
        L.Flatten(),
    ),
    "images": lambda: sequential(
        L.ZeroPadding2D(((1, 0), (0, 2))),
        L.Conv2D(4, (2, 3), groups=1),
        L.AveragePooling2D(3, strides=1, padding="same"),
        L.UpSampling2D(2),
        L.Cropping2D(1),
        L.GroupNormalization(2),
        L.GlobalMaxPooling2D(),
        shape=(7, 6, 3),
    ),
    "shapes": lambda: sequential(
        L.Permute((2, 1)),
        L.Reshape((7, 3)),
        L.GlobalAveragePooling1D(),
        L.RepeatVector(3),
        L.LayerNormalization(),
    ),
    "normalising": lambda: sequential(
        L.Rescaling(0.5, 1.0), L.RMSNormalization(), L.Dropout(0.5), L.GaussianNoise(1.0), L.Softmax()
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same(name: str) -> None:
    model = MODELS[name]()
    x = rows(4, *model.input_shape[1:])
    made = to_torch(model)
    [expected] = outputs(model, x)
    close = CLOSE * np.abs(expected).max()
    assert np.allclose(made(torch.from_numpy(x)).detach(), expected, atol=close)
    # Keras does not train unless it is told to, whatever mode a torch module is in.
    assert np.allclose(
        made.train()(torch.from_numpy(x)).detach(), expected, atol=CLOSE * np.abs(expected).max()
    )


def functional() -> Any:
    """Two inputs, two outputs, operations without a layer, a nested model, a layer used twice, attention."""
    a, b = keras.Input((6, 4), name="a"), keras.Input((6, 4), name="b")
    shared = L.Dense(4, "tanh")
    inner = keras.Sequential([keras.Input((6, 4)), L.Dense(4), L.LSTM(4, return_sequences=True)])
    x, y = shared(inner(a)), shared(b)
    merged = L.Concatenate()(
        [L.Add()([x, y]), L.Multiply()([x, y]), L.Maximum()([x, y]), L.Average()([x, y])]
    )
    attended = L.MultiHeadAttention(2, 3)(merged, y, use_causal_mask=True)
    dotted = L.Attention(use_scale=True)([x, y])
    z = keras.ops.mean(attended * 2.0 - 1.0, axis=1) / 3.0
    return with_random_weights(keras.Model([a, b], [L.Dense(2)(z), keras.ops.tanh(dotted)[:, -1]]))


def test_functional_model_with_several_inputs_and_outputs() -> None:
    model = functional()
    a, b = rows(3, 6, 4), rows(3, 6, 4, seed=2)
    made = to_torch(model)
    assert isinstance(made, torch.fx.GraphModule)
    got = made(torch.from_numpy(a), torch.from_numpy(b))
    for mine, expected in zip(got, outputs(model, a, b), strict=True):
        assert np.allclose(mine.detach(), expected, rtol=CLOSE, atol=CLOSE * np.abs(expected).max())


def test_operations_without_a_layer() -> None:
    x = keras.Input((4, 3))
    ops = keras.ops
    names = ["relu6", "elu", "celu", "selu", "silu", "hard_silu", "hard_sigmoid", "softplus", "softsign"]
    names += ["log_sigmoid", "log_softmax"]
    made = [getattr(ops, name)(x) for name in names]
    made += [ops.leaky_relu(x, 0.3), ops.elu(x, 0.5), ops.gelu(x), ops.gelu(x, approximate=False)]
    made += [ops.tan(x), ops.arctan(x), ops.sinh(x), ops.cosh(x), ops.reciprocal(x), ops.cumsum(x, 1)]
    made += [ops.moveaxis(x, 1, 2), ops.einsum("bij,bkj->bik", x, x)]
    model = keras.Model(x, made)
    given = rows(2, 4, 3)
    got = to_torch(model)(torch.from_numpy(given))
    for mine, expected in zip(got, outputs(model, given), strict=True):
        assert np.allclose(mine.detach(), expected, rtol=CLOSE, atol=CLOSE)


def test_names_that_python_has_words_for() -> None:
    model = sequential(L.Dense(3, name="lambda"), L.GRU(2, name="class"))
    made = to_torch(model)
    x = rows(2, 7, 3)
    assert np.allclose(made(torch.from_numpy(x)).detach(), outputs(model, x)[0], atol=CLOSE)


def test_inputs_and_outputs_by_name() -> None:
    a, b = keras.Input((3,), name="b_first"), keras.Input((2,), name="a_second")
    x, y = L.Dense(2)(a), L.Dense(3)(b)
    model = with_random_weights(keras.Model({"b_first": a, "a_second": b}, {"z": x, "y": y}))
    given = {"b_first": rows(4, 3), "a_second": rows(4, 2)}
    expected = model({name: keras.ops.convert_to_tensor(each) for name, each in given.items()})
    got = to_torch(model)(*(torch.from_numpy(given[name]) for name in ("a_second", "b_first")))
    assert got.keys() == {"y", "z"}
    for name, each in got.items():
        assert np.allclose(each.detach(), np.asarray(expected[name]), atol=CLOSE)


def test_numbers_that_a_model_does_not_take_are_compared_as_such() -> None:
    x = keras.Input((3,))
    made = to_torch(keras.Model(x, keras.ops.log(x) + L.Dense(3)(x)))
    assert made(torch.tensor([[-1.0, 1.0, 2.0]])).isnan().tolist() == [[True, False, False]]


def test_is_explained_additively() -> None:
    made = to_torch(functional())
    inputs, background = ([torch.from_numpy(rows(n, 6, 4, seed=seed)) for seed in (3, 4)] for n in (2, 3))
    explainer = rewriter.DeepExplainer(made, background, output=0, progress=False)
    values = explainer.shap_values(inputs)
    change = made(*inputs)[0] - made(*background)[0].mean(0)
    total = torch.stack([torch.as_tensor(each).flatten(1, -2).sum(1) for each in values]).sum(0)
    assert torch.allclose(total, change.detach().double(), atol=1e-5)


class Custom(keras.Layer):  # type: ignore[misc]  # Keras is Any
    def call(self, x: Any) -> Any:
        return x


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = L.GRU(3)
        self.head = L.Dense(2)
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x: Any) -> Any:
        return self.head(keras.ops.tanh(self.recurrent(x)) * self.scale)


def test_model_of_a_users_class() -> None:
    model = Subclassed()
    x = rows(3, 5, 2)
    model(x)
    nodes = [len(each._inbound_nodes) for each in model._flatten_layers()]
    [expected] = outputs(model, x)
    assert np.allclose(to_torch(model)(torch.from_numpy(x)).detach(), expected, atol=CLOSE)
    assert [len(each._inbound_nodes) for each in model._flatten_layers()] == nodes


class TwoInputs(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = L.GRU(3)

    def call(self, inputs: Any) -> Any:
        sequence, row = inputs
        return {"sum": self.recurrent(sequence) + row}


def test_explains_a_model_of_a_users_class_on_any_backend() -> None:
    model = TwoInputs()
    x, background = ([rows(n, 5, 2, seed=n), rows(n, 3, seed=n)] for n in (2, 4))
    change = outputs(model, *x)[0] - outputs(model, *background)[0].mean(0)
    given = [torch.from_numpy(each) for each in background]
    explainer = rewriter.DeepExplainer(model, given, output="sum", progress=False)
    values = explainer.shap_values([torch.from_numpy(each) for each in x])
    assert np.allclose(values[0].sum((1, 2)) + values[1].sum(1), change, atol=CLOSE)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Custom(name="mine")], "mine (Custom): Custom is a class of the user's"),
        ([L.Dense(2, activation=lambda x: x, name="odd")], "odd (Dense): its activation"),
        ([L.Dense(2, dtype="float16", name="half")], "half (Dense): it computes in float16"),
        ([L.LayerNormalization(axis=1, name="first")], "first (LayerNormalization): its axes [1]"),
    ],
)
def test_what_is_not_known_is_said_by_layer(layers: list[Any], message: str) -> None:
    with pytest.raises(DeclinedError) as refused:
        to_torch(keras.Sequential([keras.Input((7, 3)), *layers]))
    assert message in str(refused.value)


def test_all_layers_that_are_not_known_are_listed() -> None:
    model = keras.Sequential(
        [keras.Input((7, 3)), L.Dense(2, dtype="float16"), L.LSTM(2, activation=keras.ops.sin)]
    )
    with pytest.raises(DeclinedError) as refused:
        to_torch(model)
    assert [each.kind for each in refused.value.declines] == ["Dense", "LSTM"]


def test_a_module_that_computes_something_else_is_refused() -> None:
    model = sequential(L.Dense(2))
    model.layers[0].activation = keras.activations.tanh
    made = to_torch(model)
    check_agreement(model, made)
    with torch.no_grad():
        made.get_submodule(model.layers[0].name).linear.bias += 1
    with pytest.raises(RewriteError, match=f"the torch module of {model.name} computes something else"):
        check_agreement(model, made)


def test_what_is_no_model_of_keras_is_refused() -> None:
    with pytest.raises(RewriteError, match="expected a model or a layer of Keras, got Linear"):
        to_torch(torch.nn.Linear(2, 1))


def test_errors_name_the_way_to_torch() -> None:
    if isinstance(keras.layers.Dense(1), torch.nn.Module):
        pytest.skip("Keras runs on torch")
    with pytest.raises(RewriteError, match=r"rewriter\.keras\.to_torch\(model\) makes one"):
        rewriter.decompose(sequential(L.Dense(2)))
