"""Models whose code goes by the number of rows: loops over them, states of a fixed size, shared steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError
from tests.support.stock import assert_same, stock


class Last(nn.Module):
    """The last step of a layer, for all rows at once."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(4, 5, batch_first=True)
        self.act, self.head = nn.Sigmoid(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.rnn(x)[0][:, -1]))
        return y


class RowByRow(Last):
    """The same, one row after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(RowByRow, self).forward(x[i : i + 1]) for i in range(len(x))])


class RowsWithoutBatch(Last):
    """The same, of rows that have no batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.act(self.rnn(row)[0][-1])) for row in x])


@pytest.mark.parametrize("loop", [RowByRow, RowsWithoutBatch])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_loop_over_rows(kind: str, loop: type[Last]) -> None:
    model, whole = loop(kind).double().eval(), Last(kind).double().eval()
    whole.load_state_dict(model.state_dict())
    x, background = torch.randn(3, 6, 4).double(), torch.randn(5, 6, 4).double()
    expected = stock(whole, background, x)
    explainer = DeepExplainer(model, background)
    # As close as stock shap, which runs samples and references as one batch.
    assert_same(explainer.shap_values(x), expected, 1e-11)
    assert_same(explainer.shap_values(x[:1]), expected[:1], 1e-11)
    assert_same(DeepExplainer(model, background, max_memory=1).shap_values(x), expected, 1e-11)
    references = background.expand(3, *background.shape)
    assert_same(explainer.shap_values(x, references=references), expected, 1e-11)


class Chunks(Last):
    """The same, of a few rows at a time."""

    def __init__(self, kind: str) -> None:
        super().__init__("GRU")
        self.kind = kind

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        if self.kind == "range":
            return [x[i : i + 4] for i in range(0, len(x), 4)]
        return x.split(3) if self.kind == "split" else x.chunk(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Chunks, self).forward(part) for part in self.parts(x)])


@pytest.mark.parametrize("rows", [(3, 5), (5, 5), (1, 4), (7, 2)])
@pytest.mark.parametrize("kind", ["split", "chunk", "range"])
def test_a_few_rows_at_a_time(kind: str, rows: tuple[int, int]) -> None:
    model, whole = Chunks(kind).double().eval(), Last("GRU").double().eval()
    whole.load_state_dict(model.state_dict())
    x, background = (torch.randn(count, 6, 4).double() for count in rows)
    explainer, expected = DeepExplainer(model, background), stock(whole, background, x)
    assert_same(explainer.shap_values(x), expected, 1e-11)
    references = background.expand(len(x), *background.shape)
    assert_same(explainer.shap_values(x, references=references), expected, 1e-11)
    assert_same(DeepExplainer(model, background, max_memory=1).shap_values(x), expected, 1e-11)


class FixedState(Last):
    """Makes initial states for a number of rows of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x, torch.zeros(1, 8, 5))[0][:, -1])
        return y


def test_a_state_of_a_fixed_size_is_named() -> None:
    message = r"runs on 8 rows and not on 4: in rnn \(GRU\) \(test_rows_in_code\.py:\d+\), .*x\.shape\[0\]"
    with pytest.raises(RewriteError, match=message):
        DeepExplainer(FixedState("GRU"), torch.randn(8, 6, 4))


class Adaptive(nn.Module):
    """Heun's method, whose step the row with the largest error sets for all."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        time, step = 0.0, 0.2
        while time < 1:
            step = min(step, 1 - time)
            slope = self.field(x)
            other = self.field(x + step * slope)
            x, time = x + step * (slope + other) / 2, time + step
            step = 0.2 / (1 + 5 * (other - slope).abs().max().item())
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize("seed", range(6))
def test_a_step_that_rows_share_is_told(seed: int) -> None:
    torch.manual_seed(seed)
    model = Adaptive().double()
    with pytest.raises(RewriteError, match="rows of a batch influence each other in the model"):
        DeepExplainer(model, torch.randn(5, 3).double())
