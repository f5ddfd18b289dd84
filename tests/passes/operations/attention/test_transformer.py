"""Torch's transformer written out, against torch's own off its fast path."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import rewriter
from passes.leaves import ReLUAtom

B, T, S = 3, 4, 5
# Torch tells of each layer for which its fast path is closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    # Other tests run the same code; coverage would take as long again.
    pytest.mark.unmeasured,
]


def drawn(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, **options), 2, nn.LayerNorm(6), enable_nested_tensor=False
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "encoder layer": lambda **options: nn.TransformerEncoderLayer(6, 2, 8, **options),
    "encoder": encoder,
    "decoder layer": lambda **options: nn.TransformerDecoderLayer(6, 2, 8, **options),
    "decoder": lambda **options: nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 8, **options), 2),
    "transformer": lambda **options: nn.Transformer(6, 2, 1, 2, 8, **options),
}
LAYERS = [
    {"batch_first": a, "norm_first": b, "activation": c, "bias": d, "dropout": 0.3}
    for a, b, c, d in itertools.product(
        (False, True), (False, True), ("relu", "gelu", F.silu, nn.Softplus()), (False, True)
    )
]
CASES = list(itertools.product(MODELS, LAYERS, ("none", "bool", "float", "causal"), (False, True)))


def arguments(kind: str, masks: str, *, batched: bool, batch_first: bool) -> tuple[list[Any], dict[str, Any]]:
    """Return inputs and masks in the words of each layer."""

    def shaped(length: int) -> Tensor:
        shape = (B, length, 6) if batch_first else (length, B, 6)
        return torch.randn(shape if batched else (length, 6), requires_grad=True)

    def square(length: int) -> Tensor:
        if masks == "float":
            return torch.randn(length, length)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        return later if masks == "bool" else torch.zeros(length, length).masked_fill(later, -torch.inf)

    padding = torch.zeros((B, T) if batched else (T,), dtype=torch.bool)
    padding[..., -1] = True
    if masks == "float":
        padding = padding * -1e3
    inputs = [shaped(T)] if "encoder" in kind else [shaped(T), shaped(S)]
    if masks == "none":
        return inputs, {}
    if kind == "encoder layer":
        given = {"src_mask": square(T), "src_key_padding_mask": padding}
    elif kind == "encoder":
        given = {"mask": square(T), "src_key_padding_mask": padding}
    elif kind == "transformer":
        given = {"src_mask": square(T), "tgt_mask": square(S), "src_key_padding_mask": padding}
    else:
        given = {"tgt_mask": square(T), "tgt_key_padding_mask": padding}
    if masks == "causal":
        # Then nothing is padded: the hint is about the mask alone.
        given = {name: mask for name, mask in given.items() if "padding" not in name}
        hint = {"encoder layer": "is_causal", "encoder": "is_causal"}.get(kind, "tgt_is_causal")
        return inputs, given | {hint: True}
    return inputs, given


@pytest.mark.parametrize(("kind", "options", "masks", "batched"), random.Random(0).sample(CASES, 40))
@pytest.mark.parametrize("training", [False, True])
def test_transformers_are_torchs(
    kind: str, options: dict[str, Any], masks: str, batched: bool, training: bool
) -> None:
    model = drawn(MODELS[kind](**options)).train(training)
    inputs, given = arguments(kind, masks, batched=batched, batch_first=options["batch_first"])
    decomposed = rewriter.decompose(model)
    assert isinstance(decomposed, fx.GraphModule)
    assert decomposed.state_dict().keys() == model.state_dict().keys()
    leaves = [*inputs, *model.parameters()]
    results = []
    for each in (decomposed, model):
        torch.manual_seed(0)
        y = each(*inputs, **given)
        results.append((y, *torch.autograd.grad((y * torch.arange(6.0)).sum(), leaves)))
    # Two layers deep; the gradients of a bias sum many of them.
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


class Branching(nn.Module):
    """What torch.fx cannot follow, so that the layers in it run as code."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Any:
        return self.layer(*inputs) if inputs[0].sum() < torch.inf else None


@pytest.mark.parametrize("kind", MODELS)
def test_layers_that_run_as_code(kind: str) -> None:
    model = Branching(drawn(MODELS[kind]())).eval()
    decomposed = rewriter.decompose(model)
    assert not isinstance(decomposed, fx.GraphModule)
    assert isinstance(decomposed.layer, type(model.layer))
    assert any(isinstance(each, ReLUAtom) for each in decomposed.modules())
    inputs, _ = arguments(kind, "none", batched=True, batch_first=False)
    for each in (decomposed, copy.deepcopy(decomposed), pickle.loads(pickle.dumps(decomposed.layer))):
        torch.testing.assert_close(each(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)


def test_an_activation_of_ones_own_is_called() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, activation=lambda x: 2 * x, batch_first=True).eval()
    x = torch.randn(B, T, 6)
    for model in (layer, Branching(layer)):
        torch.testing.assert_close(rewriter.decompose(model)(x), layer(x), rtol=0, atol=1e-13)


def test_a_layer_with_a_hook_is_left() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval()
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    x = torch.randn(B, T, 6)
    torch.testing.assert_close(rewriter.decompose(nn.Sequential(layer))(x), layer(x), rtol=0, atol=1e-13)


def test_source_and_target_that_do_not_belong_together() -> None:
    model = rewriter.decompose(nn.Transformer(6, 2, 1, 1, 8, batch_first=True))
    with pytest.raises(rewriter.RewriteError, match=r"one batch \(dimension 0\) with 6 features, got shapes"):
        model(torch.zeros(2, 4, 6), torch.zeros(3, 4, 6))


class Sequences(nn.Module):
    """An LSTM between source and target of a transformer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.transformer = nn.Transformer(6, 2, 1, 2, 8, batch_first=True, **options)
        self.head = nn.Linear(6, 2)
        self.register_buffer("future", nn.Transformer.generate_square_subsequent_mask(3))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        seen = self.transformer(states, states[:, -3:], tgt_mask=self.future)
        return self.head(seen.mean(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}])
def test_attributions_add_up(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = Sequences(**options).to(dtype).eval()
    x, background = torch.randn(4, 5, 3, dtype=dtype), torch.randn(7, 5, 3, dtype=dtype)
    rise = (model(x) - model(background).mean(0)).detach().numpy()
    largest = max(1.0, float(model(x).detach().abs().max()))
    explainer = shap.DeepExplainer(rewriter.decompose(model), background)
    for values in (
        explainer.shap_values(x, check_additivity=False),
        rewriter.DeepExplainer(model, background).shap_values(x),
    ):
        assert np.abs(values.sum((1, 2)) - rise).max() <= tolerance * largest
