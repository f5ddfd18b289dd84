"""Each refusal says where, what came and what to do, and the advice works when it is followed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NeuronDeepLift
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rewriter
from rewriter import DeepExplainer, RewriteError, decompose, diagnose, export_onnx, unroll
from tests.support.models import refused as models
from tests.support.silence import silence

X, BACKGROUND = torch.randn(2, 5, 3), torch.randn(4, 5, 3)


def explain(model: Any, x: Any = X, background: Any = BACKGROUND, **options: Any) -> Any:
    given = {name: options.pop(name) for name in ("ranked_outputs", "references") if name in options}
    return DeepExplainer(model, background, **options).shap_values(x, **given)


def of_code(code: Callable[..., Any], **parts: nn.Module) -> models.Model:
    torch.manual_seed(0)
    return models.Model(code, **parts).eval()


def line(function: Any, offset: int) -> str:
    code = function.__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno + offset}"


def attribute(
    model: nn.Module, layer: str, x: Tensor = X, references: Tensor = BACKGROUND[:2], **options: Any
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's, of hooks
        found = NeuronDeepLift(model, model.get_submodule(layer))
        return found.attribute(x, baselines=references, **options)


def renormed(y: Tensor) -> Tensor:
    return torch.renorm(y, 2, 0, 0.1)


APART = X.abs(), -BACKGROUND.abs()
MIXED = torch.stack([torch.ones(5, 3), -torch.ones(5, 3)])
PACKED = of_code(models.packed)
PLAIN = of_code(models.scores)
PARTS = of_code(models.packed_with_parts, taken=nn.Identity(), state=nn.Identity())
TOKENS = (torch.randn(2, 5, 4), torch.randn(2, 5, 4))
META = nn.GRU(3, 4, batch_first=True, device="meta").eval()
TWO = of_code(models.of_two, lstm=nn.LSTM(3, 4, batch_first=True))
ACT = of_code(lambda model, x: model.fc(model.act(model.gru(x)[0])[:, -1]), act=nn.Tanh())
LOG = of_code(models.without_bound, log=models.Log())
LEFT_OUT = "torch.autograd.grad(model(x).sum(), x)"


def loaded() -> nn.Module:
    META.load_state_dict(nn.GRU(3, 4, batch_first=True).state_dict(), assign=True)
    return META


@dataclass(frozen=True)
class Refused:
    """A refusal: how it comes about, what it must say, and its advice followed."""

    provoke: Callable[[], Any]
    said: tuple[str, ...]
    follow: Callable[[], Any] | None = None


REFUSED = {
    "key": Refused(
        lambda: explain(PLAIN, output="y"),
        ("output: ", "'y'", "got Tensor float32 (4, 2)", "leave output= out"),
        lambda: explain(PLAIN),
    ),
    "key of what is diagnosed": Refused(
        lambda: diagnose(PLAIN, X, BACKGROUND, output="y"), ("output: ", "'y'", "got Tensor float32 (8, 2)")
    ),
    "index": Refused(
        lambda: explain(PLAIN.gru, output=7),
        ("output: ", "7", "got tuple of 2", "an index of that"),
        lambda: explain(PLAIN.gru, output=0),
    ),
    "neither key nor neuron": Refused(
        lambda: explain(PLAIN, output=(1, 2, 3)),
        ("output: expected a key", "got (1, 2, 3)"),
    ),
    "neuron out of range": Refused(
        lambda: explain(PLAIN, output=(PLAIN.fc, 5)),
        ("fc gives rows of shape (2,)", "got neuron 5", "an index into that shape"),
        lambda: explain(PLAIN, output=(PLAIN.fc, 1)),
    ),
    "neuron too deep": Refused(
        lambda: explain(PLAIN, output=(PLAIN.fc, (0, 1))), ("rows of shape (2,)", "got neuron (0, 1)")
    ),
    "TensorFlow's": Refused(
        lambda: DeepExplainer(PLAIN, BACKGROUND, session=3),  # type: ignore[arg-type]
        ("session: expected None, got int", "leave it out"),
    ),
    "integers": Refused(
        lambda: explain(PLAIN, background=BACKGROUND.long()),
        ("background: ", "got torch.int64", "background.float()"),
        lambda: explain(PLAIN, background=BACKGROUND.long().float()),
    ),
    "words": Refused(
        lambda: explain(PLAIN, np.array(["a"])), ("X, input 0: ", "got a ndarray of <U1", "encode")
    ),
    "no numbers": Refused(
        lambda: explain(META, output=0),
        ("weight_ih_l0: a meta tensor", "load_state_dict(weights, assign=True)"),
        lambda: explain(loaded(), output=0),
    ),
    "infinities": Refused(
        lambda: explain(LOG),
        ("got NaN or infinity", "first in row 0", "made in log", "leave such rows out"),
    ),
    "features": Refused(
        lambda: explain(PLAIN, background=torch.randn(4, 5, 7)),
        ("gru: ", "3 features last", "got (4, 5, 7)", line(models.scores, 1)),
    ),
    "features of a packed sequence": Refused(
        lambda: decompose(nn.LSTM(3, 4))(pack_padded_sequence(torch.randn(5, 4, 7), [5] * 4)),
        ("packed data", "3 features last", "got (20, 7)"),
    ),
    "packed and of other lengths": Refused(
        lambda: unroll(nn.LSTM(3, 4), X)(pack_padded_sequence(X, [2, 2, 2, 1, 1])),
        ("layer0: unrolled for sequences of equal length", "packed", "unroll it with such an example"),
        lambda: unroll(nn.LSTM(3, 4), pack_padded_sequence(X, [2, 2, 2, 1, 1])),
    ),
    "sparse": Refused(lambda: decompose(PLAIN)(X.to_sparse()), ("gru: expected a dense input", "sparse_coo")),
    "device": Refused(
        lambda: decompose(PLAIN)(X.to("meta")),
        ("gru: expected input on cpu, where the weights are", "got meta"),
    ),
    "taken packed": Refused(
        lambda: explain((PACKED, PACKED.gru)),
        ("gru: takes a PackedSequence", "nn.Identity()", "(model, model.part)", line(models.packed, 1)),
        lambda: explain((PARTS, PARTS.taken)),
    ),
    "given packed": Refused(
        lambda: explain((PACKED, PACKED.gru), attribute_to_layer_input=False),
        ("gru: gives a PackedSequence", "or a state", "nn.Identity()"),
        lambda: explain((PARTS, PARTS.state)),
    ),
    "same for all rows": Refused(
        lambda: explain((m := of_code(models.on_bias, act=nn.Tanh()), m.act)),
        ("act: takes what is the same for all rows", "explain the layer before or behind it"),
    ),
    "neuron that is the same for all rows": Refused(
        lambda: explain(m := of_code(models.on_bias, act=nn.Tanh()), output=(m.act, 0)),
        ("act: gives what is the same for all rows", "another layer"),
    ),
    "rows that cannot be told": Refused(
        lambda: explain(m := of_code(models.pairwise, act=nn.Tanh()), output=(m.act, 0)),
        ("act: the rows of the batch cannot be told in its output", "(2, 2, 5, 3)", "explain a layer that"),
    ),
    "rows of several shapes": Refused(
        lambda: explain((m := of_code(models.cut_by_values, act=nn.Softmax(-1)), m.act), *APART),
        (
            "act: input of shape (2, 2, 4)",
            "(4, 4, 4)",
            "explain another layer",
            line(models.cut_by_values, 2),
        ),
    ),
    "another path": Refused(
        lambda: explain(of_code(models.branching), X + 20),
        ("tanh: ", "another path", "torch.where", line(models.branching, 3)),
        lambda: explain(of_code(models.choosing), X + 20),
    ),
    "some of the rows": Refused(
        lambda: explain(of_code(models.some_rows), MIXED, -BACKGROUND.abs()),
        ("tanh: ", "torch.where"),
        lambda: explain(of_code(models.all_rows), MIXED, -BACKGROUND.abs()),
    ),
    "without a gradient": Refused(
        lambda: explain(of_code(models.scattered)),
        ("ScatterAddBackward0", line(models.scattered, 2), "got [2, 1]", LEFT_OUT),
        lambda: explain(of_code(models.scattered_parts)),
    ),
    "diagnosed without a gradient": Refused(
        lambda: diagnose(of_code(models.scattered), X, BACKGROUND),
        ("ScatterAddBackward0", line(models.scattered, 2), LEFT_OUT),
        lambda: diagnose(of_code(models.scattered_parts), X, BACKGROUND),
    ),
    "output= without a rule": Refused(
        lambda: explain(PLAIN, output=renormed),
        ("in output= (renorm", line(renormed, 1), "has no rule", "check_additivity=False"),
        lambda: explain(PLAIN, output=lambda y: y.amin(1)),
    ),
    "output= across rows": Refused(
        lambda: explain(PLAIN, output=lambda y: y - y.mean(0)),
        ("influence each other in output=", "its own input alone"),
        lambda: explain(PLAIN, output=lambda y: y - y.mean(1, keepdim=True)),
    ),
    "complex numbers": Refused(
        lambda: explain(of_code(models.spectral)),
        ("tanh has no rule for complex numbers", ".abs()"),
        lambda: explain(of_code(models.spectral_size)),
    ),
    "type of a layer": Refused(
        lambda: decompose(of_code(models.by_type), X),
        ("the rewritten Model", "write isinstance(layer, nn.GRU), not type(layer) is nn.GRU"),
        lambda: decompose(of_code(models.by_isinstance), X),
    ),
    "neuron of several tensors": Refused(
        lambda: attribute(decompose(TWO), "lstm", neuron_selector=(0, 1)),
        (
            "lstm: gives ",
            " tensors, torch.float32 of shape (4, 5, 4)",
            "got neuron_selector=(0, 1)",
            "lambda tensors: tensors[0][:,",
        ),
        lambda: attribute(decompose(TWO), "lstm", neuron_selector=lambda tensors: tensors[0][:, 0, 1]),
    ),
    "neuron of captum's too deep": Refused(
        lambda: attribute(decompose(PLAIN), "fc", neuron_selector=(0, 1)),
        ("fc: gives rows of shape (2,)", "got neuron_selector=(0, 1)", "for each of its dimensions"),
        lambda: attribute(decompose(PLAIN), "fc", neuron_selector=(1,)),
    ),
    "neuron of captum's too shallow": Refused(
        lambda: attribute(decompose(ACT), "act", neuron_selector=0),
        ("act: gives rows of shape (5, 4)", "got neuron_selector=0"),
        lambda: attribute(decompose(ACT), "act", neuron_selector=(0, 1)),
    ),
    "neuron of captum's out of range": Refused(
        lambda: attribute(decompose(PLAIN), "fc", neuron_selector=7), ("fc: gives rows of shape (2,)", "=7")
    ),
    "shapes by value": Refused(
        lambda: attribute(
            decompose(of_code(models.sizes_by_value)), "fc", X.abs(), -BACKGROUND[:2].abs(), neuron_selector=0
        ),
        ("tanh: gave shape ", "samples and references exchanged", "torch.where"),
    ),
    "features of attention": Refused(
        lambda: decompose(models.Attends())(torch.randn(2, 5, 6)),
        ("attention: expected query with 4 features last", "got (2, 5, 6)"),
    ),
    "mask of attention": Refused(
        lambda: decompose(models.Attends())(TOKENS[0], attn_mask=torch.zeros(3, 3)),
        ("attention: expected attn_mask of shape (5, 5)", "got (3, 3)"),
    ),
    "hint of attention": Refused(
        lambda: decompose(models.Attends())(TOKENS[0], is_causal=True),
        ("attention: is_causal is a hint about attn_mask", "got None", "leave is_causal out"),
        lambda: decompose(models.Attends())(TOKENS[0]),
    ),
    "target of a transformer": Refused(
        lambda: decompose(models.Translates().eval())(TOKENS[0], torch.randn(3, 5, 4)),
        ("inner: expected source and target of one batch", "(3, 5, 4)"),
        lambda: decompose(models.Translates().eval())(*TOKENS),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_can_be_followed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    refused = REFUSED[name]
    with silence(capfd), pytest.raises(RewriteError) as caught:
        refused.provoke()
    for said in refused.said:
        assert said in str(caught.value)
    assert str(caught.value).isascii()
    if refused.follow is not None:
        refused.follow()


def test_what_torch_does_not_check_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's LSTM writes beyond its memory where the features of a packed sequence are others."""
    seen: list[int] = []
    plain = nn.LSTM.forward

    def forward(self: nn.LSTM, input: Any, hx: Any = None) -> Any:
        seen.append(input.data.shape[-1])
        return plain(self, input, hx)

    rewritten = decompose(nn.LSTM(3, 4))
    monkeypatch.setattr(nn.LSTM, "forward", forward)
    with pytest.raises(RewriteError, match="3 features last"):
        rewritten(PackedSequence(torch.randn(4, 7), torch.tensor([2, 2])))
    assert seen == []


def test_an_export_names_the_line_that_fixes_the_batch(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=re.escape(f"in the model itself ({line(models.frozen, 1)})")):
        export_onnx(of_code(models.frozen), X, tmp_path / "m.onnx")
    with pytest.raises(RewriteError, match=r"^encoder: the number of steps is free.*another one"):
        export_onnx(models.Wrapped(), X, tmp_path / "m.onnx", batch_axes={"x": 0})


def test_operators_that_are_advised_are_allowed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with pytest.raises(RewriteError, match="not allowed") as caught:
        export_onnx(model, X[0], tmp_path / "m.onnx", operators={"Add"})
    code = re.search(r"pass operators=(rewriter\.ONNX_OPERATORS \| \{.*?\})", str(caught.value))
    assert code
    export_onnx(model, X[0], tmp_path / "m.onnx", operators=eval(code[1], {"rewriter": rewriter}))
