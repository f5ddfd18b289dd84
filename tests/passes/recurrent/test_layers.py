"""Every option of nn.LSTM, nn.GRU and nn.RNN, against the original in float64 and float32."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rewriter import decompose
from tests.support.compare import assert_close, assert_same_model, packed_like

DTYPES = st.sampled_from([torch.float64, torch.float32])


@st.composite
def layers(draw: st.DrawFn) -> nn.RNNBase:
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    hidden = draw(st.integers(1, 5))
    options: dict[str, object] = {
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "dtype": draw(DTYPES),
    }
    if kind == "LSTM" and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return getattr(nn, kind)(draw(st.integers(1, 4)), hidden, **options)


def dtype_of(layer: nn.RNNBase) -> torch.dtype:
    return next(layer.parameters()).dtype


def state_for(layer: nn.RNNBase, *batch: int) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    dtype = dtype_of(layer)
    h = torch.randn(rows, *batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    if layer.mode != "LSTM":
        return h
    return h, torch.randn(rows, *batch, layer.hidden_size, dtype=dtype)


@given(layers(), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans())
def test_padded_input(
    layer: nn.RNNBase, steps: int, batch: int, batched: bool, given_state: bool, flat: bool
) -> None:
    batch_shape = (batch,) if batched else ()
    shape = (batch, steps) if batched and layer.batch_first else (steps, *batch_shape)
    x = torch.randn(*shape, layer.input_size, dtype=dtype_of(layer))
    args = (x, state_for(layer, *batch_shape)) if given_state else (x,)
    rewritten = decompose(layer, args) if flat else decompose(layer)
    assert_same_model(layer, rewritten, *args)


@given(layers(), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_packed_input(layer: nn.RNNBase, lengths: list[int], sort: bool, given_state: bool) -> None:
    x = torch.randn(max(lengths), len(lengths), layer.input_size, dtype=dtype_of(layer))
    packed = packed_like(x, lengths, sort=sort)
    args = (packed, state_for(layer, len(lengths))) if given_state else (packed,)
    assert_same_model(layer, decompose(layer), *args)
    assert_same_model(layer, decompose(layer, args), *args)


@given(layers(), st.integers(1, 4))
def test_split_gates_copy_the_weights(layer: nn.RNNBase, steps: int) -> None:
    x = torch.randn(steps, 2, layer.input_size, dtype=dtype_of(layer))
    rewritten = decompose(layer, gates="split")
    assert_same_model(layer, rewritten, x, copied=True)
    assert not {id(p) for p in layer.parameters()} & {
        id(p) for name, p in rewritten.named_parameters() if "projection" not in name
    }
    assert rewritten.report.layers[0].parameters == "copied"


def test_split_gates_are_those_of_a_hand_written_cell() -> None:
    names = {name for name, _ in decompose(nn.LSTMCell(3, 2), gates="split").named_parameters()}
    gates = {"ii", "if", "ig", "io", "hi", "hf", "hg", "ho"}
    assert {name.split(".")[1] for name in names} == {f"fc_{gate}" for gate in gates}


@given(
    st.sampled_from([nn.LSTMCell, nn.GRUCell, nn.RNNCell]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    DTYPES,
    st.sampled_from(["fused", "split"]),
)
def test_cells(
    kind: type[nn.RNNCellBase],
    bias: bool,
    batched: bool,
    given_state: bool,
    dtype: torch.dtype,
    gates: Literal["fused", "split"],
) -> None:
    options: dict[str, Any] = {"nonlinearity": "relu"} if kind is nn.RNNCell and batched else {}
    cell = kind(3, 4, bias=bias, dtype=dtype, **options)
    batch = (5,) if batched else ()
    x, h, c = (torch.randn(*batch, size, dtype=dtype) for size in (3, 4, 4))
    state = (h, c) if kind is nn.LSTMCell else h
    args = (x, state) if given_state else (x,)
    assert_same_model(cell, decompose(cell, gates=gates), *args, copied=gates == "split")


def test_state_by_keyword_and_explicit_none() -> None:
    lstm = nn.LSTM(3, 4)
    x, h, c = torch.randn(5, 2, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    assert_same_model(lstm, decompose(lstm), x, hx=(h, c))
    assert_same_model(lstm, decompose(lstm), input=x, hx=None)
    assert_same_model(lstm, decompose(lstm), x, None)


def test_dropout_acts_where_torch_puts_it() -> None:
    for kind in ("LSTM", "GRU", "RNN"):
        layer = getattr(nn, kind)(3, 8, num_layers=3, dropout=0.4, bidirectional=True).double()
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        for mode in (True, False):
            rewritten = decompose(layer.train(mode))
            # assert_same_model seeds both runs alike: equal numbers mean equal dropout masks.
            assert_same_model(layer, rewritten, x)
        torch.manual_seed(0)
        once = decompose(layer.train())(x)[0]
        assert not torch.equal(once, decompose(layer)(x)[0])


def test_dropout_of_packed_sequences() -> None:
    for sort in (True, False):
        layer = nn.LSTM(3, 8, num_layers=2, dropout=0.5, bidirectional=True).double()
        packed = packed_like(torch.randn(6, 3, 3, dtype=torch.float64), [2, 6, 4], sort=sort)
        assert_same_model(layer, decompose(layer), packed)


@pytest.mark.parametrize("gates", ["fused", "split"])
def test_frozen_parameters_stay_frozen(gates: Literal["fused", "split"]) -> None:
    layer = nn.GRU(3, 4)
    layer.bias_ih_l0.requires_grad_(False)
    layer.weight_hh_l0.requires_grad_(False)
    rewritten = decompose(layer, gates=gates)
    parameters = dict(rewritten.named_parameters())
    for old, paths in rewritten.report.parameter_names.items():
        for path in paths:
            assert parameters[path].requires_grad == layer.get_parameter(old).requires_grad


def test_parameter_names_follow_an_unrolling_by_length() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g = nn.GRU(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.g(self.g(x)[0][:2])[0] if x.sum() < 1e9 else x

    for gates in ("fused", "split"):
        rewritten = decompose(Twice(), torch.randn(5, 2, 3), gates=gates)
        names = dict(rewritten.named_parameters())
        assert all(path in names for paths in rewritten.report.parameter_names.values() for path in paths)


def test_empty_batch() -> None:
    gru = nn.GRU(3, 4, batch_first=True)
    out, h = decompose(gru)(torch.zeros(0, 5, 3))
    assert out.shape == (0, 5, 4)
    assert h.shape == (1, 0, 4)


def test_bfloat16_is_as_close_to_float64_as_torch_is() -> None:
    for kind in ("LSTM", "GRU", "RNN"):
        layer = getattr(nn, kind)(3, 8, batch_first=True).bfloat16()
        x = torch.randn(2, 6, 3).bfloat16()
        exact = getattr(nn, kind)(3, 8, batch_first=True).double()
        exact.load_state_dict(layer.state_dict())
        truth = exact(x.double())[0]
        got = decompose(layer)(x)[0]
        assert got.dtype is torch.bfloat16
        # bfloat16 rounds to 2**-8; the original itself is off by a few such roundings.
        allowed = max((layer(x)[0].double() - truth).abs().max().item(), 2**-8) * 2
        assert (got.double() - truth).abs().max().item() <= allowed


def test_autocast_keeps_dtypes() -> None:
    gru = nn.GRU(3, 4)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, h = decompose(gru)(x)
        expected, state = gru(x)
    assert (out.dtype, h.dtype) == (expected.dtype, state.dtype)
    # bfloat16 rounds to 2**-8 and both round at other places.
    assert_close(out, expected, 2**-7, "output")
