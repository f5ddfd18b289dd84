"""Recurrent layers with any options and inputs, against torch's own in float64."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from passes.errors import RewriteError
from rewriter import decompose
from tests.fuzz.computing import compare
from tests.fuzz.judging import HELD, Violation, judged, picture, unchanged
from tests.fuzz.programs import Drawn
from tests.support.compare import leaves

_IMPORTS = (
    "import torch\nfrom torch import nn\n\ntorch.manual_seed({seed})\ntorch.set_default_dtype(torch.{dtype})"
)
_WAYS = (
    "",
    ".transpose(-1, -2).contiguous().transpose(-1, -2)",
    ".repeat_interleave(2, -1)[..., ::2]",
    " * 0",
)


def _state(draw: st.DrawFn, rows: tuple[int, ...], widths: list[int]) -> str:
    parts = [f"torch.randn{(*rows, width)}" for width in widths]
    return draw(st.sampled_from([", None", ""])) if draw(st.booleans()) else f", {_tuple(parts)}"


def _tuple(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


@st.composite
def layers(draw: st.DrawFn) -> Drawn:
    """Draw a layer, its arguments, and how it is rewritten."""
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    cell = draw(st.integers(0, 3)) == 3
    features, hidden = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    options: dict[str, Any] = {"bias": draw(st.booleans())}
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if cell:
        arguments = _of_cell(draw, kind, features, hidden)
    else:
        options |= {
            "num_layers": draw(st.integers(1, 3)),
            "bidirectional": draw(st.booleans()),
            "batch_first": draw(st.booleans()),
        }
        if options["num_layers"] > 1:
            options["dropout"] = draw(st.sampled_from([0.0, 0.5]))
        if kind == "LSTM" and hidden > 1:
            options["proj_size"] = draw(st.integers(0, hidden - 1))
        arguments = _of_layer(draw, kind, features, hidden, options)
    shown = "".join(f", {name}={value!r}" for name, value in options.items())
    gates, flat = draw(st.sampled_from(["fused", "split"])), draw(st.booleans())
    lines = [
        _IMPORTS.format(seed=draw(st.integers(0, 99)), dtype="float64"),
        f"model = nn.{kind}{'Cell' if cell else ''}({features}, {hidden}{shown}).eval()",
        arguments,
        "torch.set_default_dtype(torch.float32)",
        f"flat, gates = {flat}, {gates!r}",
    ]
    return Drawn("\n".join(lines) + "\n", (kind, *options, gates))


def _of_cell(draw: st.DrawFn, kind: str, features: int, hidden: int) -> str:
    rows = draw(st.sampled_from([(2,), (1,), (5,), ()]))
    x = f"torch.randn{(*rows, features)}{draw(st.sampled_from(_WAYS[2:])) if rows else ''}"
    return f"arguments = ({x}{_state(draw, rows, [hidden] * (2 if kind == 'LSTM' else 1))},)"


def _of_layer(draw: st.DrawFn, kind: str, features: int, hidden: int, options: dict[str, Any]) -> str:
    steps, count = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    layers = options["num_layers"] * (2 if options["bidirectional"] else 1)
    widths = [options.get("proj_size") or hidden, *([hidden] if kind == "LSTM" else [])]
    form = draw(st.sampled_from(["batch", "packed", "one"]))
    if form == "one":
        x = f"torch.randn({steps}, {features}){draw(st.sampled_from(_WAYS))}"
        return f"arguments = ({x}{_state(draw, (layers,), widths)},)"
    shape = (count, steps, features) if options["batch_first"] else (steps, count, features)
    x = f"torch.randn{shape}{draw(st.sampled_from(_WAYS))}"
    if form == "packed":
        lengths = [steps, *(draw(st.integers(1, steps)) for _ in range(count - 1))]
        in_order = draw(st.booleans())
        lengths = sorted(lengths, reverse=True) if in_order else lengths[::-1]
        x = f"nn.utils.rnn.pack_padded_sequence({x}, {lengths}, {options['batch_first']}, {in_order})"
    return f"arguments = ({x}{_state(draw, (layers, count), widths)},)"


def _run(model: Any, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Tensor]]:
    wanted = {place: each for place, each in leaves(arguments).items() if each.is_floating_point()}
    for each in wanted.values():
        each.grad = None
        if each.is_leaf:
            each.requires_grad_()
    output = model(*arguments)
    found = leaves(output)
    moving = [each for each in found.values() if each.requires_grad]
    weighted = [(each * torch.linspace(0.5, 1.5, each.numel()).view_as(each)).sum() for each in moving]
    inputs = {place: each for place, each in wanted.items() if each.requires_grad}
    gradients = torch.autograd.grad(
        sum(weighted, torch.zeros(())), [*inputs.values(), *model.parameters()], allow_unused=True
    )
    numbers = {place: each.detach().clone() for place, each in found.items()}
    for place, each, got in zip(inputs, inputs.values(), gradients, strict=False):
        numbers[f"gradient of {place}"] = torch.zeros_like(each) if got is None else got
    return output, numbers


def layer_is_the_same(example: Drawn) -> str:
    """Judge a rewritten layer: outputs, states, gradients, and what is left of the original."""
    space, oracle = example.build(), example.build()
    before = picture(space)
    try:
        with judged("decompose(layer)"):
            rewritten = decompose(space.model, space.arguments if space.flat else None, gates=space.gates)
        unchanged(space, before, "decompose(layer)")
        for _ in range(2):
            expected = _run(oracle.model, oracle.arguments)
            with judged("a call of decompose(layer)"):
                got = _run(rewritten, space.arguments)
            compare(expected, got, "decompose(layer)")
    except RewriteError as error:
        raise Violation("what is promised is refused", str(error)) from error
    return "packed" if isinstance(space.arguments[0], PackedSequence) else HELD
