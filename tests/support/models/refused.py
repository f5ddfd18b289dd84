"""Models that are refused, each beside one that its refusal advises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class Model(nn.Module):
    """Recurrent, with code of the test's."""

    def __init__(self, code: Callable[..., Any] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        for name, part in parts.items():
            self.add_module(name, part)
        self.code = code

    def forward(self, x: Any, *more: Any, **options: Any) -> Any:
        return scores(self, x) if self.code is None else self.code(self, x, *more, **options)


def scores(model: Any, x: Tensor) -> Tensor:
    found: Tensor = model.fc(model.gru(x)[0][:, -1])
    return found


def scattered(model: Any, x: Tensor) -> Tensor:
    y, index = scores(model, x), torch.zeros(len(x), 1, dtype=torch.long)
    return torch.zeros_like(y).scatter_add(1, index, y)


def scattered_parts(model: Any, x: Tensor) -> Tensor:
    y, index = scores(model, x), torch.zeros(len(x), 1, dtype=torch.long)
    return torch.zeros_like(y).scatter_add(1, index, y[:, :1])


def packed(model: Any, x: Tensor) -> Tensor:
    return model.fc(model.gru(pack_padded_sequence(x, [5] * len(x), batch_first=True))[1][0])


def packed_with_parts(model: Any, x: Tensor) -> Tensor:
    x = model.taken(x)
    state = model.gru(pack_padded_sequence(x, [5] * len(x), batch_first=True))[1][0]
    return model.fc(model.state(state))


def spectral(model: Any, x: Tensor) -> Tensor:
    return torch.fft.fft(scores(model, x)).tanh().real


def spectral_size(model: Any, x: Tensor) -> Tensor:
    return torch.fft.fft(scores(model, x)).abs().tanh()


def branching(model: Any, x: Tensor) -> Tensor:
    y = model.gru(x)[0][:, -1]
    if float(x.sum()) > 200:
        y = torch.tanh(y)
    return model.fc(y)


def choosing(model: Any, x: Tensor) -> Tensor:
    y = model.gru(x)[0][:, -1]
    return model.fc(torch.where(x.sum((1, 2))[:, None] > 100, torch.tanh(y), y))


def some_rows(model: Any, x: Tensor) -> Tensor:
    y = model.gru(x)[0][:, -1]
    chosen = x.sum((1, 2)) + 0 * y[:, 0] > 0
    z = torch.zeros_like(y)
    z[chosen] = torch.tanh(y[chosen])
    return model.fc(z)


def all_rows(model: Any, x: Tensor) -> Tensor:
    y = model.gru(x)[0][:, -1]
    chosen = x.sum((1, 2)) > 0
    return model.fc(torch.where(chosen[:, None], torch.tanh(y), 0 * y))


def by_type(model: Any, x: Tensor) -> Tensor:
    return scores(model, x) * (2 if type(model.gru) is nn.GRU else 3)


def by_isinstance(model: Any, x: Tensor) -> Tensor:
    return scores(model, x) * (2 if isinstance(model.gru, nn.GRU) else 3)


def frozen(model: Any, x: Tensor) -> Tensor:
    return scores(model, x) + torch.ones(2, 2)


def pairwise(model: Any, x: Tensor) -> Tensor:
    model.act(x.unsqueeze(0) * x.unsqueeze(1))
    return scores(model, x)


def on_bias(model: Any, x: Tensor) -> Tensor:
    return scores(model, x) + model.act(model.fc.bias)


def of_two(model: Any, x: Tensor) -> Tensor:
    y, (_, c) = model.lstm(x)
    return model.fc(y[:, -1] + c[-1])


def without_bound(model: Any, x: Tensor) -> Tensor:
    return model.fc(model.log(model.gru(x)[0][:, -1]))


def cut_by_values(model: Any, x: Tensor) -> Tensor:
    steps = 2 if float(x.sum()) > 0 else 4
    return model.fc(model.act(model.gru(x)[0][:, :steps]).sum(1))


def sizes_by_value(model: Any, x: Tensor) -> Tensor:
    steps = model.gru(x)[0]
    rows = [torch.tanh(y[: 2 if row.sum() > 0 else 4]).sum(0) for row, y in zip(x, steps, strict=True)]
    return model.fc(torch.stack(rows))


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        found: Tensor = self.attention(x, x, x, **options)[0]
        return found


class Translates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        found: Tensor = self.inner(source, target)
        return found


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.encoder(x)[0]
        return found
