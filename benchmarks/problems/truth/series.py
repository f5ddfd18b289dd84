"""Series of which it is known what matters, restated from what was published.

State data: a hidden Markov model of two states, Tonekaboni, Joshi, Campbell, Duvenaud and Goldenberg 2020,
"What went wrong and when? Instance-wise feature importance for time-series black-box models"
(arXiv:2003.02821), in the form of Crabbé and van der Schaar 2021, "Explaining time series predictions with
dynamic masks"
(arXiv:2106.05303): which of two features makes the label is decided by the state, at each step.

White boxes: sums of squares of some elements of ARMA processes, from the latter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

FEATURES, HIDDEN = 3, 200
# Of each state the means, and which feature makes the label; feature 0 varies with that a little.
MEANS = torch.tensor([[0.1, 1.6, 0.5], [-0.1, -0.4, -1.5]])
MATTERS = torch.tensor([1, 2])
VARIANCE, COVARIANCE = 0.801, 0.01


class Series(NamedTuple):
    """Series, labels, and what matters.

    Args:
        x: (N, T, features).
        y: labels (N, T), or nothing.
        matters: booleans like x.

    """

    x: Tensor
    y: Tensor
    matters: Tensor


def states_of(count: int, steps: int, generator: Generator) -> Tensor:
    """Draw hidden states (N, T).

    From state 0 it goes to 1 with probability 0.05; in state 1 it stays with 0.95 less 1/500 for each step
    that the state has lasted.
    """
    state = torch.bernoulli(torch.full((count,), 0.5), generator=generator)
    lasted = torch.zeros(count)
    found = []
    for _ in range(steps):
        stay = torch.where(state == 1, (0.95 - lasted / 500).clamp_min(0), torch.tensor(0.05))
        after = torch.bernoulli(stay, generator=generator)
        lasted = torch.where(after == state, lasted + 1, 0.0)
        state = after
        found.append(state)
    return torch.stack(found, 1).long()


def state_data(count: int, steps: int, generator: Generator) -> Series:
    """Draw series, whose label at each step has the log-odds 2 x of the feature that matters in its state."""
    states = states_of(count, steps, generator)
    covariance = VARIANCE * torch.eye(FEATURES).repeat(2, 1, 1)
    for state, feature in enumerate(MATTERS.tolist()):
        covariance[state, 0, feature] = covariance[state, feature, 0] = COVARIANCE
    roots = torch.linalg.cholesky(covariance)
    noise = torch.randn(count, steps, FEATURES, generator=generator)
    x = MEANS[states] + (roots[states] @ noise.unsqueeze(-1)).squeeze(-1)
    place = MATTERS[states].unsqueeze(-1)
    y = torch.bernoulli(torch.sigmoid(2 * x.gather(2, place)), generator=generator).squeeze(-1)
    return Series(x, y, torch.zeros_like(x, dtype=torch.bool).scatter_(2, place, True))


class StateClassifier(nn.Module):
    """A GRU of 200 units and a linear head at each step; explained is the sum of all log-odds."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    def odds(self, x: Tensor) -> Tensor:
        """Return log-odds (B, T)."""
        return self.head(self.rnn(x)[0]).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1)."""
        return self.odds(x).sum(1, keepdim=True)


def classifier(data: Series, seed: int, updates: int) -> StateClassifier:
    """Return a classifier trained on batches of 100 series."""
    torch.manual_seed(seed)
    net = StateClassifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    generator = Generator().manual_seed(seed)
    for _ in range(updates):
        rows = torch.randint(len(data.x), (100,), generator=generator)
        loss = nn.functional.binary_cross_entropy_with_logits(net.odds(data.x[rows]), data.y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.double().eval()


def arma(count: int, steps: int, features: int, generator: Generator) -> Tensor:
    """Draw x_t = ε_t - 0.25 x_{t-1} - 0.1 x_{t-2} - 0.05 x_{t-3} (N, T, features), from nothing before."""
    noise = torch.randn(count, steps, features, generator=generator).double()
    found: list[Tensor] = []
    for each in noise.unbind(1):
        for weight, before in zip((0.25, 0.1, 0.05), reversed(found[-3:]), strict=False):
            each = each - weight * before
        found.append(each)
    return torch.stack(found, 1)


class WhiteBox(nn.Module):
    """The sum of the squares of what matters."""

    def __init__(self, matters: Tensor) -> None:
        super().__init__()
        self.matters = nn.Buffer(matters.double())

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1) for (B, T, features)."""
        return (x * self.matters).square().sum((1, 2)).unsqueeze(1)


def rare(kind: str, steps: int, features: int, generator: Generator) -> Tensor:
    """Return what matters (T, features): five features in half of the time, or half of them in five steps."""
    matters = torch.zeros(steps, features, dtype=torch.bool)
    if kind == "feature":
        some = torch.randperm(features, generator=generator)[:5]
        matters[steps // 4 : 3 * steps // 4, some] = True
    else:
        begin = int(torch.randint(steps - 5, (), generator=generator))
        matters[begin : begin + 5, features // 4 : 3 * features // 4] = True
    return matters
