"""Rows that influence each other are found before anything is explained, and the module is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError
from tests.support.models import batch_elsewhere


class Forgets(nn.Module):
    """Passes (B, T, F) to a layer that takes (T, B, F)."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.rnn, self.head = kind(3, 4), nn.Linear(4, 2)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(self.encoder(x))[0][:, -1])
        return y


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("samples", "length"), [(9, 5), (3, 5), (5, 5)])
def test_a_forgotten_batch_first(kind: type[nn.RNNBase], samples: int, length: int) -> None:
    message = rf"in rnn \({kind.__name__}\): .*, and reads dimension 0 as time; make it with batch_first=True"
    with pytest.raises(RewriteError, match=message):
        DeepExplainer(Forgets(kind), torch.randn(samples, length, 3))


class Rows(nn.Module):
    """Takes rows of features for sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0][:, -1]
        return y


class Centres(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (Rows, (5, 3), r"in rnn \(GRU\)"),
        (Attends, (5, 6, 4), r"in attention \(MultiheadAttention\)"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Centres()), (5, 4), r"in 1 \(Centres\)"),
        (Centres, (5, 4), r"in the model itself \(Centres\)"),
    ],
)
def test_the_module_is_named(make: Callable[[], nn.Module], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RewriteError, match=f"rows of a batch influence each other {message}"):
        DeepExplainer(make(), torch.randn(shape))


@pytest.mark.parametrize("kind", batch_elsewhere.MODELS, ids=lambda kind: kind.__name__)
def test_rows_apart_wherever_the_batch_is(kind: type[nn.Module]) -> None:
    assert DeepExplainer(kind(), torch.randn(5, 6, 3)) is not None


def test_statistics_that_are_kept_couple_no_rows() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    x, background = torch.randn(3, 3), torch.randn(5, 3)
    assert DeepExplainer(model, background).shap_values(x).shape == (3, 3, 2)
