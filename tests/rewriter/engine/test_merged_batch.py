"""A batch that the model merges with time, on either side: against stock shap, which runs it twice to see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from tests.support.stock import assert_same, check, stock

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

STEPS = 6


class TimeMajor(nn.Module):
    """A recurrent layer with time first, and an operation on the steps of all rows at once."""

    def __init__(self, act: Callable[[Tensor], Tensor], *, branch: bool = False) -> None:
        super().__init__()
        self.gru, self.between = nn.GRU(3, 4), nn.Linear(4, 4)
        self.act, self.branch = act, branch
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.gru(x.transpose(0, 1))[0]
        if self.branch and bool(out.sum() > 1e9):
            return self.head(out[-1])
        merged = self.act(self.between(out.reshape(STEPS * x.shape[0], 4)))
        return self.head(merged).view(STEPS, x.shape[0], 2).sum(0)


class Words(nn.Module):
    """A recurrent layer over the characters of each word, for all words at once, time-major."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.chars = getattr(nn, kind)(3, 4, batch_first=True, bidirectional=True)
        self.words, self.head = nn.LSTM(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        time_major = x.transpose(0, 1).flatten(0, 1).unflatten(-1, (2, 3))
        words = self.chars(time_major)[0][:, -1].view(STEPS, x.shape[0], 8)
        return self.head(self.words(words)[0][-1])


class Between(nn.Module):
    """The batch merged with dimensions on both of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        merged = x.unflatten(2, (2, 3)).permute(1, 0, 2, 3).flatten(0, 2)
        merged = torch.tanh(merged) * merged
        return self.head(merged.view(STEPS, rows, 6).transpose(0, 1).flatten(1))


def _checked(x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError("diverged")
    return torch.tanh(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "relu": (lambda: TimeMajor(torch.relu), 3),
    "softmax": (lambda: TimeMajor(lambda x: x.softmax(-1)), 3),
    "product": (lambda: TimeMajor(lambda x: x * x.roll(1, -1)), 3),
    "maximum": (lambda: TimeMajor(lambda x: x * x.amax(-1, keepdim=True)), 3),
    "check": (lambda: TimeMajor(_checked), 3),
    "code that does not trace": (lambda: TimeMajor(torch.tanh, branch=True), 3),
    "LSTM": (lambda: Words("LSTM"), 6),
    "GRU": (lambda: Words("GRU"), 6),
    "RNN": (lambda: Words("RNN"), 6),
    "between": (Between, 6),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("counts", [(2, 3), (3, 3), (1, 1), (6, 2)])
def test_equal_to_stock_shap(name: str, counts: tuple[int, int]) -> None:
    make, features = MODELS[name]
    check(make(), *(torch.randn(count, STEPS, features) for count in counts))


@pytest.mark.parametrize("name", MODELS)
def test_in_tiles_and_with_references_per_sample(name: str) -> None:
    make, features = MODELS[name]
    model = make().double()
    x, background = (torch.randn(count, STEPS, features).double() for count in (4, 5))
    expected = stock(model, background, x)
    # Where all steps are alike, they do not tell where the batch is.
    DeepExplainer(model, torch.zeros_like(background)).shap_values(torch.zeros_like(x))
    assert_same(DeepExplainer(model, background, max_memory=1).shap_values(x), expected, 1e-11)
    references = background.expand(4, *background.shape)
    assert_same(DeepExplainer(model, background).shap_values(x, references=references), expected, 1e-11)


class Windows(nn.Module):
    """A recurrent layer over windows, merged with the batch as (W, B); missing values count as nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows, windows, steps, _ = x.shape
        x = torch.relu(torch.nan_to_num(x) - 1).permute(2, 1, 0, 3).reshape(steps, windows * rows, 3)
        return self.head(self.gru(x)[1][0]).view(windows, rows, 2).sum(0)


@pytest.mark.parametrize("dead", [slice(None), slice(0, 1), slice(1, None)], ids=["all", "first", "last"])
def test_a_first_sample_whose_changes_reach_nothing(dead: slice) -> None:
    model = Windows().double()
    x, background = (2 * torch.randn(rows, 2, 4, 3).double() for rows in (3, 5))
    # So far below what the relu lets through that no mark gets it there.
    x[0, dead] = -9.0
    expected = stock(model, background, x)
    explainer = DeepExplainer(model, background)
    explainer.shap_values(x[:1])
    assert_same(explainer.shap_values(x), expected, 1e-11)
    assert_same(explainer.shap_values(x[1:]), expected[1:], 1e-11)
    assert_same(DeepExplainer(model, background).shap_values(x), expected, 1e-11)


class Positions(nn.Module):
    """Multiplies by a constant that is merged with the batch, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.between, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("weights", torch.randn(STEPS, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        merged = torch.tanh(self.between(x.transpose(0, 1).reshape(-1, 3)))
        weights = torch.exp(self.weights.expand(STEPS, len(x), 4).reshape(-1, 4))
        return self.head(merged * weights).view(STEPS, len(x), 2).sum(0)


def test_a_constant_that_is_merged_with_the_batch() -> None:
    model = Positions().double()
    x, background = torch.randn(3, STEPS, 3).double(), torch.randn(5, STEPS, 3).double()
    values = DeepExplainer(model, background).shap_values(x)
    assert_same(values, stock(model, background, x), 1e-11)
    with torch.no_grad():
        expected = (model(x) - model(background).mean(0)).numpy()
    assert np.abs(values.sum((1, 2)) - expected).max() < 1e-13


class Tokens(TimeMajor):
    def __init__(self) -> None:
        super().__init__(torch.relu)
        self.embedding = nn.Embedding(9, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.embedding(tokens))


def test_tokens() -> None:
    model = Tokens().double()
    tokens, background = torch.randint(0, 9, (2, STEPS)), torch.randint(0, 9, (4, STEPS))
    with torch.no_grad():
        x, x0 = model.embedding(tokens), model.embedding(background)
    plain = TimeMajor(torch.relu).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    expected = stock(plain, x0, x)
    assert_same(DeepExplainer(model, background).shap_values(tokens), expected.sum(2), 1e-11)
    behind = DeepExplainer((model, model.embedding), background).shap_values(tokens)
    assert_same(behind, expected, 1e-11)


class Squeezed(nn.Module):
    """Takes every dimension of size 1 away, as many models with one output do."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1]).squeeze()


def test_a_model_that_wants_more_than_one_row() -> None:
    model = Squeezed().double()
    # One row more than what runs at a time.
    x, background = torch.randn(3, 5, 3).double(), torch.randn(17, 5, 3).double()
    with torch.no_grad():
        expected = (model(x) - model(background).mean()).numpy()
    got = DeepExplainer(model, background).shap_values(x)
    assert np.abs(got.sum((1, 2)) - expected).max() < 1e-13
