"""What flowed through which gate: additive, and as stock shap has it for a cell with an input per gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from passes.errors import RewriteError
from rewriter import DeepExplainer, decompose, plot

LAYERS: dict[str, tuple[type[nn.RNNBase], int]] = {
    "lstm": (nn.LSTM, 4),
    "gru": (nn.GRU, 3),
    "rnn": (nn.RNN, 1),
}
# Of sums in float64 of numbers of the order of 1.
CLOSE = 1e-13


class Last(nn.Module):
    """A recurrent layer of any kind; large weights, so that gates are far from linear."""

    def __init__(self, kind: Any, outputs: int = 2, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4 * (1 + self.rnn.bidirectional), outputs)
        for weight in self.rnn.parameters():
            nn.init.normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].sum(1))


class Coded(Last):
    """Nothing that torch.fx can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.isfinite().all() else -x)


class Halves(nn.Module):
    """An LSTM of which each gate reads an input of its own: four copies of the sequence, side by side."""

    def __init__(self, lstm: Any, head: nn.Linear) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 4, batch_first=True), head
        self.lstm.load_state_dict(lstm.state_dict() | {"weight_ih_l0": self.spread(lstm.weight_ih_l0)})

    @staticmethod
    def spread(weight: Tensor) -> Tensor:
        return torch.block_diag(*weight.detach().chunk(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].sum(1))


def sequences(rows: int) -> Tensor:
    return torch.randn(rows, 5, 3, dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("model_kind", [Last, Coded])
def test_gates_of_a_step_sum_to_what_its_input_added(kind: str, model_kind: type[Last]) -> None:
    layer, count = LAYERS[kind]
    model, data, x = model_kind(layer).double(), sequences(6), sequences(3)
    found = plot.gate_values(model, model.rnn, data, x)
    values = DeepExplainer(model, data).shap_values(x)
    assert found.shape == (3, 5, count, 2)
    assert np.abs(found.values.sum(2) - values.sum(2)).max() < CLOSE
    change = model(x).detach().numpy() - found.base_values
    assert np.abs(found.values.sum((1, 2)) - change).max() < CLOSE
    # No gate is nothing, or all of it.
    assert (np.abs(found.values).sum((0, 1, 3)) > 0.01 * np.abs(values).sum()).all()


def test_stock_shap_has_the_same_for_an_input_of_its_own_for_each_gate() -> None:
    model, data, x = Last(nn.LSTM).double(), sequences(6), sequences(3)
    halves = Halves(model.rnn, model.head).double()
    wide = [torch.cat([each] * 4, -1) for each in (data, x)]
    assert torch.allclose(halves(wide[1]), model(x), rtol=0, atol=CLOSE)
    stock = shap.DeepExplainer(decompose(halves), wide[0]).shap_values(wide[1])
    expected = stock.reshape(3, 5, 4, 3, 2).sum(3)
    found = plot.gate_values(model, model.rnn, data, x)
    # Stock shap divides by small differences.
    assert np.abs(found.values - expected).max() < 1e-6 * np.abs(expected).max()


def test_the_first_step_has_nothing_to_forget() -> None:
    """The forget gate multiplies the old cell state, which is 0, whatever came in."""
    model = Last(nn.LSTM).double()
    found = plot.gate_values(model, model.rnn, sequences(6), sequences(3))
    forget = found.values[:, :, found.feature_names.index("forget gate")]
    assert not forget[:, 0].any()
    assert forget[:, 1:].any()


def test_levels_and_directions() -> None:
    model = Last(nn.LSTM, 1, num_layers=2, bidirectional=True).double()
    data, x = sequences(6), sequences(3)
    change = (model(x) - model(data).mean(0)).detach().numpy()[:, 0]
    for level in (0, 1):
        found = plot.gate_values(model, model.rnn, data, x, level=level)
        assert found.feature_names[3:5] == ["output gate, forward", "input gate, reverse"]
        assert np.abs(found.values.sum((1, 2)) - change).max() < CLOSE
    values = DeepExplainer(model, data).shap_values(x)
    first = plot.gate_values(model, model.rnn, data, x).values
    assert np.abs(first.sum(2) - values.sum((2, 3))).max() < CLOSE


@pytest.mark.parametrize("options", [{}, {"proj_size": 2, "bias": False}], ids=["plain", "projected"])
def test_lengths_go_around_the_gates(options: Any) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, **options)
            self.head = nn.Linear(options.get("proj_size", 4), 1)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
            return self.head(self.lstm(packed)[1][0][-1])

    model, x, lengths = Packed().double(), sequences(3), torch.tensor([2, 5, 4])
    data = [sequences(4), torch.tensor([5, 3, 1, 5])]
    found = plot.gate_values(model, model.lstm, data, [x, lengths])
    values = DeepExplainer(model, data).shap_values([x, lengths])[0][..., 0]
    assert np.abs(found.values.sum(2) - values.sum(2)).max() < CLOSE
    # The mean over references that are as long as the sample.
    bases = [model(data[0], length.expand(4)).mean().item() for length in lengths]
    assert np.abs(found.base_values - bases).max() < CLOSE
    assert not found.values[0, 2:].any()


def test_tokens_come_in_by_the_gates() -> None:
    class Worded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.gru = nn.Embedding(9, 3), nn.GRU(3, 4, batch_first=True)

        def forward(self, words: Tensor) -> Tensor:
            return self.gru(self.embedding(words))[0].sum((1, 2)).unsqueeze(1)

    model, words, data = Worded().double(), torch.randint(9, (2, 5)), torch.randint(9, (4, 5))
    found = plot.gate_values(model, model.gru, data, words)
    change = (model(words) - model(data).mean(0)).detach().numpy()[:, 0]
    assert np.abs(found.values.sum((1, 2)) - change).max() < CLOSE


def test_the_model_stays_as_it_is() -> None:
    model = Last(nn.GRU)
    before, names = {k: v.clone() for k, v in model.state_dict().items()}, [*dict(model.named_modules())]
    plot.gate_values(model, model.rnn, sequences(4).float(), sequences(2).float())
    assert all(torch.equal(before[key], each) for key, each in model.state_dict().items())
    assert [*dict(model.named_modules())] == names
    assert model.training


def test_bars_stand_on_those_of_their_sign() -> None:
    model = Last(nn.LSTM, 1).double()
    found = plot.gate_values(model, model.rnn, sequences(6), sequences(3))
    ax = plot.gates(found, sample=1)
    (line, _) = ax.lines
    assert np.allclose(line.get_ydata(), found.values[1].sum(1), rtol=0, atol=CLOSE)
    bars = np.array([[(bar.get_y(), bar.get_height()) for bar in each] for each in ax.containers])
    # A height is the difference of both ends.
    assert np.allclose(bars[..., 1], found.values[1].T, rtol=0, atol=CLOSE)
    for t in range(5):
        for sign in (1, -1):
            ends = [bar for bar in bars[:, t] if bar[1] * sign > 0]
            tops = np.cumsum([0, *(height for _, height in ends)])
            assert np.allclose([bottom for bottom, _ in ends], tops[:-1], rtol=0, atol=CLOSE)
    labels = ax.get_legend_handles_labels()[1]
    assert labels[1] == f"input gate: {found.values[1, :, 0].sum():+.2g}"


@pytest.mark.parametrize(
    ("layer", "asked", "message"),
    [
        (lambda model: model.head, {}, "expected an nn.LSTM, nn.GRU or nn.RNN of the model, got Linear"),
        (lambda model: nn.GRU(3, 2), {}, "the GRU is not a part of the model"),
        (lambda model: model.rnn, {"level": 1}, "level: expected 0 to 0, got 1"),
    ],
)
def test_what_has_no_gates_is_refused(layer: Any, asked: Any, message: str) -> None:
    model = Last(nn.GRU)
    with pytest.raises(RewriteError, match=message):
        plot.gate_values(model, layer(model), sequences(2).float(), sequences(1).float(), **asked)
