"""Integers that a model moves before it looks them up, against what is looked up explained by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError
from tests.support.stock import stock

STEPS = 6
# float64 sums of a few hundred terms of size 1.
EXACT = 1e-13


class Reader(nn.Module):
    """An LSTM over what an embedding found."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4)
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def read(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][:, -1])
        return y


class Moved(Reader):
    """Looks tokens up that were moved, or counted from somewhere else."""

    def __init__(self, move: Callable[[Tensor], Tensor], *, branch: bool) -> None:
        super().__init__()
        self.move, self.branch = move, branch

    def forward(self, tokens: Tensor) -> Tensor:
        if self.branch and bool(tokens.sum() < 0):
            return tokens.double()
        return self.read(self.embedding(self.move(tokens)))


class Behind(Reader):
    """The same, of what was found for each token where it came from."""

    def __init__(self, moved: Moved, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.load_state_dict(moved.state_dict())
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.move(x))


def _with_start(tokens: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens], 1)


def _in_a_buffer(tokens: Tensor) -> Tensor:
    buffer = torch.zeros(len(tokens), STEPS + 1, dtype=torch.long)
    buffer[:, 1:].copy_(tokens)
    return buffer


def _in_a_loop(tokens: Tensor) -> Tensor:
    buffer = tokens.new_zeros(tokens.shape)
    for t in range(STEPS):
        buffer[:, t] = tokens[:, STEPS - 1 - t]
    return buffer


#: What is done with tokens, with what was found for each instead, and how those were counted.
MOVES: dict[
    str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
] = {
    "reversed": (lambda t: t.flip(1), lambda x: x.flip(1), lambda t: t),
    "every other": (lambda t: t[:, ::2], lambda x: x[:, ::2], lambda t: t),
    "one column over time": (
        lambda t: t[:, 0].unsqueeze(1).expand(-1, STEPS),
        lambda x: x[:, :1].expand(-1, STEPS, -1),
        lambda t: t,
    ),
    "twice": (lambda t: torch.cat([t, t.flip(1)], 1), lambda x: torch.cat([x, x.flip(1)], 1), lambda t: t),
    "in order of another": (
        lambda t: t.gather(1, torch.tensor([2, 0, 1, 5, 4, 3]).expand(len(t), -1)),
        lambda x: x[:, [2, 0, 1, 5, 4, 3]],
        lambda t: t,
    ),
    "time first": (
        lambda t: t.T.reshape(-1).view(STEPS, -1).T,
        lambda x: x,
        lambda t: t,
    ),
    "loop": (_in_a_loop, lambda x: x.flip(1), lambda t: t),
    "cast": (lambda t: t.int().float().long(), lambda x: x, lambda t: t),
    "counted from one": (lambda t: t + 1, lambda x: x, lambda t: t + 1),
    "offsets": (
        lambda t: t % 2 + torch.arange(STEPS),
        lambda x: x,
        lambda t: t % 2 + torch.arange(STEPS),
    ),
    "a table": (lambda t: torch.arange(11).flip(0)[t], lambda x: x, lambda t: 10 - t),
    "at most": (lambda t: t.clamp(max=5), lambda x: x, lambda t: t.clamp(max=5)),
}


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 11, (3, STEPS)), torch.randint(0, 11, (4, STEPS))


@pytest.mark.parametrize("branch", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("name", MOVES)
def test_the_token_gets_it_that_was_moved(name: str, branch: bool, tokens: tuple[Tensor, Tensor]) -> None:
    move, move_found, count = MOVES[name]
    model = Moved(move, branch=branch).double().eval()
    with torch.no_grad():
        x, background = (model.embedding(count(each)) for each in tokens)
    expected = stock(Behind(model, move_found).double().eval(), background, x).sum(2)
    got = DeepExplainer(model, tokens[1]).shap_values(tokens[0])
    assert np.abs(got - expected).max() < EXACT


@pytest.mark.parametrize("move", [_with_start, _in_a_buffer], ids=["cat", "buffer"])
def test_start_tokens_are_constants(move: Callable[[Tensor], Tensor], tokens: tuple[Tensor, Tensor]) -> None:
    model = Moved(move, branch=False).double().eval()
    with torch.no_grad():
        start = model.embedding(torch.zeros(1, 1, dtype=torch.long))
        x, background = (model.embedding(each) for each in tokens)
    behind = Behind(model, lambda x: torch.cat([start.expand(len(x), -1, -1), x], 1)).double().eval()
    expected = stock(behind, background, x).sum(2)
    got = DeepExplainer(model, tokens[1]).shap_values(tokens[0])
    assert np.abs(got - expected).max() < EXACT


class Columns(Reader):
    """Categories in columns beside a series, a static of them repeated, and positions of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.static = nn.Embedding(STEPS, 4), nn.Embedding(5, 4)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        place = self.positions(torch.arange(steps).expand(rows, steps))
        first = self.embedding(categories[:, 0]).unsqueeze(1)
        second = self.static(categories[:, 1].unsqueeze(1).repeat(1, steps))
        return self.read(x + place + first + second)


class GivenColumns(Columns):
    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        place = self.positions(torch.arange(STEPS)).unsqueeze(0)
        return self.read(x + place + first.unsqueeze(1) + second.unsqueeze(1))


def test_columns_of_categories_beside_a_series() -> None:
    model, given = Columns().double().eval(), GivenColumns().double().eval()
    given.load_state_dict(model.state_dict())
    sides = [[torch.randn(rows, STEPS, 4).double(), torch.randint(0, 5, (rows, 3))] for rows in (3, 4)]
    found = []
    for x, categories in sides:
        with torch.no_grad():
            found.append([x, model.embedding(categories[:, 0]), model.static(categories[:, 1])])
    x, first, second = stock(given, found[1], found[0])
    got_x, got = DeepExplainer(model, sides[1]).shap_values(sides[0])
    assert np.abs(got_x - x).max() < EXACT
    assert np.abs(got[:, 0] - first.sum(1)).max() < EXACT
    assert np.abs(got[:, 1] - second.sum(1)).max() < EXACT
    assert not got[:, 2].any()


class Computes(Reader):
    """Looks up what is made of several tokens."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.embedding(self.compute(tokens)))


@pytest.mark.parametrize(
    "compute",
    [
        lambda t: t.sort(1)[0],
        lambda t: t.cumsum(1) % 12,
        lambda t: t.cummax(1)[0],
        lambda t: (t + t.roll(1, 1)) % 12,
    ],
    ids=["sort", "cumsum", "cummax", "pairs"],
)
def test_what_is_made_of_several_tokens_is_refused(
    compute: Callable[[Tensor], Tensor], tokens: tuple[Tensor, Tensor]
) -> None:
    model = Computes(compute).double().eval()
    with pytest.raises(RewriteError, match=r"embedding: looks up integers .* that the model computes"):
        DeepExplainer(model, tokens[1]).shap_values(tokens[0])
