"""Attention: torch's own as the oracle of values, the sum of attributions as that of the rules."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import captum.attr
import numpy as np
import pytest
import shap
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import rewriter
from passes.leaves import Atom

L, S, B, HEADS = 4, 5, 3, 2
Some = TypeVar("Some", bound=nn.Module)
ADDITIVITY = {torch.float64: 1e-10, torch.float32: 1e-5}


class Layer(nn.Module):
    """A layer that returns several things, with masks as inputs and plain options."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer = layer
        self.options = options

    def forward(self, q: Any, k: Any, v: Any, attn_mask: Any = None, key_padding_mask: Any = None) -> Any:
        masks = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}
        return self.layer(q, k, v, **masks, **self.options)


def masks_of(kind: str, batched: bool) -> dict[str, Any]:
    padding = torch.zeros((B, S) if batched else (S,), dtype=torch.bool)
    padding[..., -1] = True
    rows = B * HEADS if batched else HEADS
    return {
        "none": {},
        "bool": {"attn_mask": torch.eye(L, S, dtype=torch.bool)},
        "float": {"attn_mask": torch.randn(L, S)},
        "per head": {"attn_mask": torch.randn(rows, L, S)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": torch.eye(L, S, dtype=torch.bool), "key_padding_mask": padding},
        "floats": {"attn_mask": torch.randn(rows, L, S), "key_padding_mask": padding.double() * -1e3},
        "causal": {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1)},
    }[kind]


OPTIONS = [
    dict(zip(("layer", "batched", "masks", "call"), each, strict=True))
    for each in itertools.product(
        [
            {"batch_first": a, "kdim": b, "vdim": c, "add_bias_kv": d, "add_zero_attn": e, "bias": f}
            for a, b, c, d, e, f in itertools.product(
                (False, True), (None, 3), (None, 7), (False, True), (False, True), (False, True)
            )
        ],
        (False, True),
        ("none", "bool", "float", "per head", "padding", "both", "floats", "causal"),
        ({}, {"need_weights": False}, {"average_attn_weights": False}),
    )
]


def drawn(layer: Some) -> Some:
    """Draw all parameters, biases too, which torch leaves at zero."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("case", random.Random(0).sample(OPTIONS, 40))
def test_multihead_attention_is_torchs(case: dict[str, Any]) -> None:
    batched, batch_first = case["batched"], case["layer"]["batch_first"]
    layer = drawn(nn.MultiheadAttention(6, HEADS, **case["layer"]))
    options = dict(case["call"]) | ({"is_causal": True} if case["masks"] == "causal" else {})
    model = Layer(layer, **options)
    decomposed = rewriter.decompose(model)
    assert isinstance(decomposed, fx.GraphModule)
    assert not [each for each in decomposed.modules() if type(each) is nn.MultiheadAttention]

    def shaped(length: int, size: int) -> Tensor:
        shape = (B, length, size) if batch_first else (length, B, size)
        return torch.randn(shape if batched else (length, size), requires_grad=True)

    inputs = [shaped(L, 6), shaped(S, layer.kdim), shaped(S, layer.vdim)]
    masks = masks_of(case["masks"], batched)
    with warnings.catch_warnings():
        # torch wants both masks to be of one type.
        warnings.simplefilter("ignore")
        expected = model(*inputs, **masks)
    leaves = [*inputs, *(each for each in layer.parameters())]
    for got in (decomposed(*inputs, **masks), _as_islands(model)(*inputs, **masks)):
        assert (got[1] is None) == (expected[1] is None)
        outputs = [(a, b) for a, b in zip(got, expected, strict=True) if a is not None]
        for a, b in outputs:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        weights = [torch.randn_like(a) for a, _ in outputs]
        gradients = [
            torch.autograd.grad(
                sum((pair[k] * w).sum() for pair, w in zip(outputs, weights, strict=True)),
                leaves,
                retain_graph=True,
                materialize_grads=True,
            )
            for k in range(2)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def _as_islands(model: Layer) -> nn.Module:
    class Branching(Layer):
        def forward(self, q: Any, *args: Any, **kwargs: Any) -> Any:
            return super().forward(q, *args, **kwargs) if q.sum() < torch.inf else None

    decomposed = rewriter.decompose(Branching(model.layer, **model.options))
    assert not isinstance(decomposed, fx.GraphModule)
    return decomposed


class Attend(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.options)


CLOSED = torch.tensor([[True, False, True], [False, False, False], [True, True, True], [False, True, True]])


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"is_causal": True}, None),
        ({"scale": 0.3}, None),
        ({}, CLOSED),
        ({}, CLOSED.expand(B, 4, 4, 3)),
        ({}, torch.zeros(4, 3, dtype=torch.float64).masked_fill(~CLOSED, -torch.inf)),
        ({"scale": 2.0}, torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)),
        ({"dropout_p": 0.4}, None),
        ({"dropout_p": 0.4}, CLOSED),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_scaled_dot_product_attention_is_torchs(
    options: dict[str, Any], mask: Tensor | None, grouped: bool
) -> None:
    model = Attend(**options, **({"enable_gqa": True} if grouped else {}))
    decomposed = rewriter.decompose(model)
    assert [type(each).__name__ for each in decomposed.modules() if isinstance(each, Atom)] == [
        "Bilinear",
        "SoftmaxAtom",
        "Bilinear",
    ]
    heads = 2 if grouped else 4
    inputs = [
        torch.randn(shape, requires_grad=True) for shape in ((B, 4, 4, 6), (B, heads, 3, 6), (B, heads, 3, 5))
    ]
    results = []
    for each in (decomposed, model):
        torch.manual_seed(0)
        y = each(*inputs, mask)
        gradients = torch.autograd.grad((y * torch.arange(5.0)).sum(), inputs)
        results.append((y, *gradients))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert all(tensor.isfinite().all() for tensor in results[0])


@pytest.mark.parametrize("need_weights", [False, True])
def test_rows_that_see_nothing_are_as_torch_has_them(need_weights: bool) -> None:
    layer = drawn(nn.MultiheadAttention(6, HEADS, batch_first=True))
    model = Layer(layer, need_weights=need_weights)
    x, padding = torch.randn(B, L, 6), torch.zeros(B, L, dtype=torch.bool)
    padding[1] = True
    got = rewriter.decompose(model)(x, x, x, key_padding_mask=padding)
    expected = model(x, x, x, key_padding_mask=padding)
    assert bool(expected[0].isnan().any()) == need_weights
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13, equal_nan=True)


def test_dropout_of_the_weights_draws_what_torch_draws() -> None:
    layer = drawn(nn.MultiheadAttention(6, HEADS, dropout=0.5))
    for options in ({}, {"need_weights": False}):
        model = Layer(layer, **options).train()
        decomposed, x = rewriter.decompose(model), torch.randn(L, B, 6)
        results = []
        for each in (model, decomposed):
            torch.manual_seed(1)
            results.append(each(x, x, x)[0])
        torch.testing.assert_close(*results, rtol=0, atol=1e-13)


def test_layer_keeps_its_face_and_its_parameters() -> None:
    layer = nn.MultiheadAttention(6, HEADS, kdim=3, add_bias_kv=True)
    before = layer.state_dict()
    decomposed = rewriter.decompose(layer)
    assert isinstance(decomposed, nn.MultiheadAttention)
    assert (decomposed.embed_dim, decomposed.num_heads, decomposed.batch_first) == (6, HEADS, False)
    assert decomposed.state_dict().keys() == before.keys()
    assert all(decomposed.get_parameter(name) is p for name, p in layer.named_parameters())
    assert type(layer) is nn.MultiheadAttention
    assert layer.state_dict().keys() == before.keys()
    q, k, v = torch.randn(L, B, 6), torch.randn(S, B, 3), torch.randn(S, B, 6)
    for other in (copy.deepcopy(decomposed), pickle.loads(pickle.dumps(decomposed))):
        torch.testing.assert_close(other(q, k, v), layer(q, k, v), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("shapes", "masks", "message"),
    [
        (((2, 3, 4, 6),) * 3, {}, "Query|query"),
        (((L, B, 6),) * 3, {"attn_mask": torch.zeros(2, 2)}, r"attn_mask of shape \(4, 4\), got \(2, 2\)"),
        (((L, B, 6),) * 3, {"key_padding_mask": torch.zeros(2, 2)}, r"key_padding_mask of shape \(3, 4\)"),
        (((L, B, 6),) * 3, {"is_causal": True}, "is_causal is a hint about attn_mask"),
    ],
)
def test_bad_input_is_refused(shapes: Any, masks: dict[str, Any], message: str) -> None:
    layer = rewriter.decompose(nn.MultiheadAttention(6, HEADS))
    with pytest.raises(rewriter.RewriteError, match=message):
        layer(*(torch.zeros(shape) for shape in shapes), **masks)


class Recurrent(nn.Module):
    """An LSTM, something that attends to its states, and a head."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.attend = attend
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(self.attend(states).mean(1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, h: Tensor) -> Tensor:
        scores = self.query(h) @ self.key(h).transpose(1, 2) / math.sqrt(6)
        return torch.softmax(scores, -1) @ h


class MultiHead(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, HEADS, **options)
        self.register_buffer("future", torch.ones(5, 5, dtype=torch.bool).triu(1))

    def forward(self, h: Tensor) -> Tensor:
        if not self.layer.batch_first:
            h = h.transpose(0, 1)
        h = self.layer(h, h, h, attn_mask=self.future)[0]
        return h if self.layer.batch_first else h.transpose(0, 1)


class Causal(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        heads = h.unflatten(-1, (2, 3)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(2)


class Closed(nn.Module):
    """Two rows of the mask leave nothing to look at."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).tril(-2))

    def forward(self, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(h, h, h, self.mask)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "by hand": SelfAttention,
    "multihead": lambda: MultiHead(batch_first=True),
    "multihead, length first": lambda: MultiHead(add_bias_kv=True, add_zero_attn=True),
    "function": Causal,
    "rows that see nothing": Closed,
    "encoder layer": lambda: nn.TransformerEncoderLayer(6, HEADS, 8, batch_first=True),
    "encoder layer, norm first": lambda: nn.TransformerEncoderLayer(
        6, HEADS, 8, activation="gelu", batch_first=True, norm_first=True
    ),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, HEADS, 8, batch_first=True), 2, enable_nested_tensor=False
    ),
}


def additivity(model: nn.Module, x: Tensor, background: Tensor) -> dict[str, float]:
    """Return how far the attributions of each explainer are from adding up."""
    decomposed = rewriter.decompose(model)

    def f(x: Tensor) -> Any:
        return model(x).detach().numpy()

    rise = f(x) - f(background).mean(0)
    values = {
        "stock shap": shap.DeepExplainer(decomposed, background).shap_values(x, check_additivity=False),
        "ours": rewriter.DeepExplainer(model, background).shap_values(x),
    }
    largest = max(1.0, np.abs(f(x)).max())
    errors = {name: np.abs(each.sum((1, 2)) - rise).max() / largest for name, each in values.items()}
    assert all(np.isfinite(each).all() for each in values.values())
    pair = [x.clone().requires_grad_(), background[: len(x)].clone().requires_grad_()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_captum = captum.attr.DeepLift(decomposed).attribute(*pair, target=1)
    gap = by_captum.sum((1, 2)).detach().numpy() - (f(x) - f(background[: len(x)]))[:, 1]
    return errors | {"captum": np.abs(gap).max() / largest}


@pytest.mark.parametrize("dtype", ADDITIVITY)
@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_attributions_add_up(kind: str, dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    model = Recurrent(ATTENTIONS[kind]()).to(dtype).eval()
    x, background = torch.randn(4, 5, 3, dtype=dtype) * scale, torch.randn(7, 5, 3, dtype=dtype) * scale
    errors = additivity(model, x, background)
    assert max(errors.values()) <= ADDITIVITY[dtype], errors


def test_large_logits_stay_finite() -> None:
    x = torch.randn(4, 5, 3) * 1e4

    class Self(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x).sum((1, 2)).unsqueeze(1)

    model = Self()
    values = rewriter.DeepExplainer(model, x[:3] + 1).shap_values(x)
    rise = model(x) - model(x[:3] + 1).mean(0)
    # Values of 1e4.
    np.testing.assert_allclose(values.reshape(4, -1).sum(1), rise[:, 0], rtol=0, atol=1e-10 * 1e4)


def test_what_is_masked_gets_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(6, HEADS, batch_first=True)
            self.register_buffer("mask", torch.tensor([[False, False, False, True, True]]))

        def forward(self, x: Tensor) -> Tensor:
            padding = self.mask.expand(x.shape[0], -1)
            return self.layer(x[:, :1], x, x, key_padding_mask=padding)[0].flatten(1)

    model, x, background = Masked(), torch.randn(4, 5, 6), torch.randn(7, 5, 6)
    for values in (
        rewriter.DeepExplainer(model, background).shap_values(x),
        shap.DeepExplainer(rewriter.decompose(model), background).shap_values(x),
    ):
        assert (values[:, 3:] == 0).all()
        assert (values[:, :3] != 0).all()
