"""Exported layers give in onnxruntime what they give in torch."""

from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
import torch
from torch import nn

import rewriter
from rewriter import export_onnx
from tests.support.exports import FORBIDDEN, check_against_torch


class EveryLayer(nn.Module):
    """All kinds and options side by side on one batch-first input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5),
                nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, proj_size=2),
                nn.GRU(3, 4, 2, bidirectional=True, batch_first=True, bias=False),
                nn.RNN(3, 4, bidirectional=True, batch_first=True),
                nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
            ]
        )
        self.time_first = nn.GRU(3, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return [layer(x) for layer in self.layers], self.time_first(x.transpose(0, 1))


class Cells(nn.Module):
    """Every cell in the user's own loop, with a branch that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(3, 4)
        self.gru = nn.GRUCell(4, 4, bias=False)
        self.tanh = nn.RNNCell(4, 4)
        self.relu = nn.RNNCell(4, 2, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        state = g = t = r = None
        outputs = []
        for step in range(x.shape[1]):
            state = self.lstm(x[:, step], state)
            g = self.gru(state[0], g)
            t = self.tanh(g, t)
            r = self.relu(t, r)
            outputs.append(r)
        return torch.stack(outputs, 1), state


class Wrapped(nn.GRU):
    def forward(  # type: ignore[override]
        self, x: torch.Tensor, hx: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.flatten_parameters()
        return super().forward(2 * x, hx)


class Island(nn.Module):
    """What torch.fx does not follow: len, branches, keyword states, counters, mappings as outputs."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True)
        self.gru = Wrapped(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, hx: Any = None) -> dict[str, Any]:
        assert isinstance(self.rnn, nn.LSTM)
        self.calls += 1
        if hx is None:
            hx = tuple(torch.zeros(self.rnn.num_layers, len(x), self.rnn.hidden_size) for _ in range(2))
        if not self.training and x.shape[1] > 2:
            x = x + 1
        out, state = self.rnn(x, hx=hx)
        out, _ = self.gru(out)
        return {"logits": self.head(out[:, -1]), "state": state}


class Around(nn.Module):
    """Embedding, attention, convolution, norms, chunks and two inputs around a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encode(self.embed(tokens))
        a, b = self.norm(self.conv(x.transpose(1, 2))).chunk(2, 1)
        x, _ = self.lstm((a * b.sigmoid()).transpose(1, 2))
        x, attention = self.attend(x, x, x)
        return self.head(x.split(8, -1)[0]).log_softmax(-1) * weight[:, None, None], attention


def test_every_layer_kind_gives_what_torch_gives(tmp_path: Path) -> None:
    model = EveryLayer()
    report = export_onnx(model, torch.randn(3, 5, 3), tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(11, 5, 3))
    assert FORBIDDEN.isdisjoint(report.operators)
    assert sorted(report.errors) == ["batch of 1", "batch of 3", "batch of 7"]
    assert max(report.errors.values()) <= 1e-6


def test_loops_take_any_length_in_both_directions(tmp_path: Path) -> None:
    model = EveryLayer()
    report = export_onnx(model, torch.randn(3, 5, 3), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"x": ("batch", "time", 3)}
    # One for both directions of a layer.
    assert report.operators["Scan"] == 9
    assert {"LSTM", "GRU", "RNN", "Loop", "If"}.isdisjoint(report.operators)
    for length in (1, 2, 17):
        check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, length, 3))


def test_cells_in_a_users_loop(tmp_path: Path) -> None:
    model = Cells()
    report = export_onnx(model, torch.randn(2, 6, 3), tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 6, 3))
    assert report.operators["Gemm"] == 6 * 8
    weights = [each.name for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert set(dict(model.named_parameters())) <= set(weights)


def test_a_model_that_fx_cannot_follow_is_exported_and_stays_as_it_is(tmp_path: Path) -> None:
    model = Island().train()
    model.gru.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    x = torch.randn(1, 6, 3)
    random = torch.get_rng_state()
    export_onnx(model, x, tmp_path / "m.onnx")
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert not model.gru.training
    assert set(vars(model)) == attributes
    assert type(model.rnn) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 6, 3))


def test_other_layers_around_and_tied_weights(tmp_path: Path) -> None:
    model = Around()
    inputs = torch.randint(0, 20, (3, 5)), torch.rand(3)
    report = export_onnx(model, inputs, tmp_path / "m.onnx", output_names=["scores", "attention"])
    assert report.inputs == {"tokens": ("batch", 5), "weight": ("batch",)}
    assert report.outputs == {"scores": ("batch", 5, 20), "attention": ("batch", 5, 5)}
    check_against_torch(tmp_path / "m.onnx", model, torch.randint(0, 20, (6, 5)), torch.rand(6))
    shapes = [tuple(each.dims) for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert shapes.count((20, 8)) == 1
    assert shapes.count((8, 20)) == 0


class ReadsParameters(nn.Module):
    """Asks a layer and a cell for their parameters: for their device, as factories, and to compute with."""

    lstm: Any

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, proj_size=4, bidirectional=True)
        self.cell = nn.GRUCell(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.zeros(2, x.shape[0], 4, device=self.lstm.weight_hh_l0.device)
        out, _ = self.lstm(x, (h, self.lstm.weight_hr_l0.new_zeros(2, x.shape[0], 5)))
        state = self.cell.weight_hh.new_zeros(x.shape[0], 4)
        for step in range(3):
            state = self.cell(out[:, step], state)
        return out * self.lstm.weight_hh_l0_reverse.norm(), state + self.cell.bias_hh[:4]


@pytest.mark.parametrize(("gates", "loops"), [(None, False), (None, True), ("fused", True), ("split", False)])
def test_a_model_may_read_the_parameters_of_its_layers(
    tmp_path: Path, gates: Literal["fused", "split"] | None, loops: bool
) -> None:
    model = ReadsParameters()
    exported = model if gates is None else rewriter.decompose(model, gates=gates)
    export_onnx(exported, torch.randn(2, 5, 3), tmp_path / "m.onnx", loops=loops)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 5, 3))


def test_a_projected_layer_with_its_states_as_inputs(tmp_path: Path) -> None:
    model = nn.LSTM(3, 5, proj_size=2)
    states = torch.randn(1, 3, 2), torch.randn(1, 3, 5)
    report = export_onnx(
        model,
        (torch.randn(4, 3, 3), states),
        tmp_path / "m.onnx",
        input_names=["x", "h0", "c0"],
        output_names=["out", "h", "c"],
    )
    assert report.inputs == {"x": (4, "batch", 3), "h0": (1, "batch", 2), "c0": (1, "batch", 5)}
    assert report.outputs == {"out": (4, "batch", 2), "h": (1, "batch", 2), "c": (1, "batch", 5)}
    states = torch.randn(1, 8, 2), torch.randn(1, 8, 5)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 8, 3), states)


def test_float64_keyword_arguments_and_the_newest_opset(tmp_path: Path) -> None:
    model = nn.GRU(3, 4, batch_first=True).double()
    inputs = {"hx": torch.randn(1, 2, 4).double(), "input": torch.randn(2, 7, 3).double()}
    report = export_onnx(model, inputs, tmp_path / "m.onnx", opset=24)
    assert (report.opset, list(report.inputs)) == (24, ["input", "hx"])
    x, h = torch.randn(5, 7, 3).double(), torch.randn(1, 5, 4).double()
    check_against_torch(tmp_path / "m.onnx", model, x, h, bound=1e-14)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_three_axes(tmp_path: Path, masked: bool) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.rnn(x)[0]
            mask = y @ y.transpose(1, 2) > -1 if masked else None
            attention = nn.functional.scaled_dot_product_attention
            return attention(y, 2 * y, y, mask, 0.0, not masked)

    model = Attending()
    export_onnx(model, torch.randn(2, 5, 3), tmp_path / "m.onnx", loops=True)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 7, 3))
