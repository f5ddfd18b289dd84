"""Models that shap and captum explain wrong, and models that they explain right, on inputs (M, 5, 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.support.models import gallery


class TimeFirst(nn.Module):
    """An activation sees (time, batch), which shap and captum part along time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.inner(x.transpose(0, 1)))[-1])


class StepsOutside(nn.Module):
    """An activation sees (time · batch), the batch inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.inner(x.transpose(0, 1).flatten(0, 1)))
        return self.head(y.unflatten(0, (-1, x.shape[0])).sum(0))


class StepsInside(nn.Module):
    """An activation sees (batch · time), which parts as the batch does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.inner(x.flatten(0, 1)))
        return self.head(y.unflatten(0, (x.shape[0], -1)).sum(1))


class LinearTwice(nn.Module):
    """A linear layer runs twice, once with time first; an activation once, on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.head = nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.inner(self.inner(x.transpose(0, 1))[-1])))


class Functional(nn.Module):
    """An activation that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(15, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x.flatten(1))))


class Twice(nn.Module):
    """One module for two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.head = nn.Tanh(), nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.head(self.act(x.flatten(1))))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(15, 2), nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.flatten(1)) * self.other(x.flatten(1))


def convolutional(pool: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv1d(5, 4, 1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2))


def ready(model: nn.Module) -> nn.Module:
    """Give lazy layers their shapes."""
    model(torch.zeros(2, 5, 3))
    return model.double()


# What shap and captum explain wrong.
NEEDED: dict[str, Callable[[], nn.Module]] = {
    "LSTM": gallery.Classifier,
    "GRU": lambda: gallery.Classifier("GRU", bidirectional=True),
    "values decide": gallery.ValueControlFlow,
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 3), nn.Softmax(1)),
    "norm": lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(15), nn.Linear(15, 2)),
    "function": Functional,
    "product": Product,
    "called twice": Twice,
    "in place": lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
    "time first": TimeFirst,
    "steps outside": StepsOutside,
    "windows that overlap": lambda: convolutional(nn.MaxPool1d(2, stride=1)),
}
# What they explain right.
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 2)),
    "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 2)),
    "pool": lambda: convolutional(nn.MaxPool1d(3)),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Conv2d(1, 3, 2),
        nn.BatchNorm2d(3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(24, 2),
    ),
    "steps inside": StepsInside,
    "linear twice": LinearTwice,
}


def data(*rows: int) -> list[Tensor]:
    """Return a batch of each number of rows."""
    return [torch.randn(n, 5, 3, dtype=torch.float64) for n in rows]
