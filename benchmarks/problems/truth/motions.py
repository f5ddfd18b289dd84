"""A model of real data for which exact Shapley values of groups can be had: movements of the wrist.

BasicMotions, which aeon ships: 6 channels of 100 steps, 4 classes, 40 series to train on. Each half of each
channel is a player, 12 of them.
"""

from __future__ import annotations

import torch
from aeon.datasets import load_basic_motions
from problems.truth.shapley import shapley_values
from torch import Tensor, nn

CHANNELS, STEPS, CLASSES = 6, 100, 4
#: Which player each number of a series belongs to, (STEPS, CHANNELS).
GROUPS = torch.arange(CHANNELS) + CHANNELS * (torch.arange(STEPS) >= STEPS // 2).long()[:, None]
PLAYERS = 2 * CHANNELS


class Motions(nn.Module):
    """An LSTM that tells what somebody does; its output is the score of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(CHANNELS, 32, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def scores(self, x: Tensor) -> Tensor:
        """Return (B, CLASSES)."""
        return self.head(self.rnn(x)[0][:, -1])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1)."""
        return self.scores(x)[:, :1]


def series(split: str) -> tuple[Tensor, Tensor]:
    """Return the series of a split, channels by their deviation in training, and the number of each class."""
    x, y = load_basic_motions(split)
    train, names = load_basic_motions("train")
    scale = torch.from_numpy(train).float().std((0, 2))
    _, numbers = torch.from_numpy(x), torch.tensor([sorted(set(names)).index(each) for each in y])
    return torch.from_numpy(x).float().transpose(1, 2) / scale, numbers


def motions(seed: int, updates: int) -> Motions:
    """Return a model that was trained."""
    torch.manual_seed(seed)
    net, (x, y) = Motions(), series("train")
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(updates):
        loss = nn.functional.cross_entropy(net.scores(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.double().eval()


def exact_of_groups(net: nn.Module, x: Tensor, references: Tensor) -> Tensor:
    """Return exact Shapley values of the players, (M, PLAYERS)."""

    def of_sample(sample: Tensor) -> Tensor:
        def game(players: Tensor) -> Tensor:
            member = players.bool()[:, GROUPS]
            worth = [net(torch.where(member, sample, each)).view(-1) for each in references]
            return torch.stack(worth).mean(0)

        ones = torch.ones(PLAYERS, dtype=x.dtype)
        return shapley_values(game, ones, torch.zeros(1, PLAYERS, dtype=x.dtype))

    with torch.no_grad():
        return torch.stack([of_sample(each) for each in x])


def by_group(values: Tensor) -> Tensor:
    """Sum the values of a player's numbers, (M, PLAYERS)."""
    return values.new_zeros(len(values), PLAYERS).index_add(1, GROUPS.flatten(), values.flatten(1))
