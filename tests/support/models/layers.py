"""Models around a layer of any kind, and what is behind the layer, as a model of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """A layer of the user's."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h) * h.sigmoid()


class Branching(nn.Module):
    """A layer of the user's that torch.fx cannot follow."""

    def forward(self, h: Tensor) -> Tensor:
        return h if h.sum() > 1e9 else torch.tanh(h) * h


class InPlace(nn.Module):
    """Overwrites what it takes with functions."""

    def forward(self, h: Tensor) -> Tensor:
        h.mul_(2).sigmoid_()
        return h


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 4),
    "Tanh": nn.Tanh,
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "PReLU": nn.PReLU,
    "Softmax": lambda: nn.Softmax(-1),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 4, batch_first=True),
    "GRU": lambda: nn.GRU(4, 2, num_layers=2, bidirectional=True, batch_first=True),
    "RNN": lambda: nn.RNN(4, 4, batch_first=True),
    "LSTM, time first": lambda: nn.LSTM(4, 4),
    "LSTMCell": lambda: nn.LSTMCell(4, 4),
    "Conv1d": lambda: nn.Conv1d(5, 5, 3, padding=1),
    "Sequential": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)),
    "Dropout": lambda: nn.Dropout(0.5),
    "Identity": nn.Identity,
    "the user's": Scaled,
    "the user's code": Branching,
    "the user's in place": InPlace,
}


def attends(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h, h, h)[0]


def steps_once(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h[:, -1])[0].unsqueeze(1)


def time_first(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h.transpose(0, 1))[0].transpose(0, 1)


def first_of(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)[0]


def plainly(layer: nn.Module, h: Tensor) -> Tensor:
    return layer(h)


def call_of(layer: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return how a layer is called with (B, T, 4)."""
    if isinstance(layer, nn.RNNBase):
        return first_of if layer.batch_first else time_first
    return {nn.MultiheadAttention: attends, nn.LSTMCell: steps_once}.get(type(layer), plainly)


class Behind(nn.Module):
    """A layer, and what comes after it."""

    def __init__(self, layer: nn.Module, *, branches: bool = False) -> None:
        super().__init__()
        self.layer, self.head, self.branches = layer, nn.Linear(4, 2), branches
        self.call = call_of(layer)

    def forward(self, h: Tensor) -> Tensor:
        y = self.head(self.call(self.layer, h).tanh()).mean(1)
        if self.branches and y.sum() > 1e9:
            return -y
        return y


def model_with(layer: nn.Module, *, branches: bool = False) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Behind(layer, branches=branches)).double().eval()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)


class Copy(nn.Module):
    """Code that works in place would overwrite the background of stock shap."""

    def forward(self, h: Tensor) -> Tensor:
        return h.clone()


class Head(nn.Module):
    """What comes after a layer."""

    def __init__(self, behind: Behind) -> None:
        super().__init__()
        self.head = behind.head

    def forward(self, y: Tensor) -> Tensor:
        return self.head(y.tanh()).mean(1)


class Residual(nn.Module):
    """The layer's input goes around it as well."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(3, 4), layer, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h * self.layer(h).tanh())


class Apart(nn.Module):
    """What is behind the layer of a :class:`Residual`, as a function of both ways."""

    def __init__(self, model: Residual) -> None:
        super().__init__()
        self.layer, self.head = model.layer, model.head

    def forward(self, through: Tensor, around: Tensor) -> Tensor:
        return self.head(around * self.layer(through).tanh())


class Merged(nn.Module):
    """Steps and rows share a dimension, in either order."""

    def __init__(self, *, time_first: bool) -> None:
        super().__init__()
        self.layer, self.head, self.time_first = nn.LayerNorm(3), nn.Linear(3, 2), time_first

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(0, 1) if self.time_first else x
        y = self.layer(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return self.head((y.transpose(0, 1) if self.time_first else y).tanh()).mean(1)


class Crossed(nn.Module):
    """A layer that takes two tensors that vary, and a mask that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x), self.second(x).flip(1))

    def rest(self, q: Tensor, k: Tensor) -> Tensor:
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        return self.head(self.layer(query=q, key=k, value=k, attn_mask=mask)[0]).mean(1)


class Rest(Crossed):
    def forward(self, q: Tensor, k: Tensor) -> Tensor:  # type: ignore[override]
        return self.rest(q, k)


class Encoder(nn.Module):
    """Torch computes its layer at once, unless something keeps it from that."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
        self.head, self.branches = nn.Linear(4, 2), branches

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.enc(x)).mean(1)
        return -y if self.branches and y.sum() > 1e9 else y


class Listed(nn.Module):
    """Members of containers, and a part that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)) for _ in range(2))
        self.named = nn.ModuleDict({"norm": nn.LayerNorm(3)})
        self.act, self.unused, self.head = nn.Tanh(), nn.Linear(1, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.act(block(x))
        return self.head(self.named["norm"](x))
