"""A model, a background and samples for the programs beside this file."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Last(nn.Module):
    """A classifier by the last state of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 2) of sequences (B, T, 3)."""
        return self.head(self.rnn(x)[0][:, -1])


def built() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, a background (6, 5, 3) and samples (2, 5, 3), always the same."""
    torch.manual_seed(0)
    return Last().eval(), torch.randn(6, 5, 3), torch.randn(2, 5, 3)


def for_command_line() -> tuple[nn.Module, Tensor]:
    """Return a model and example inputs."""
    model, _, x = built()
    return model, x


def sum_error(model: nn.Module, background: Tensor, x: Tensor, values: object) -> float:
    """Return by how much the sums of values (N, T, F, K) miss what is explained."""
    with torch.no_grad():
        explained = model(x) - model(background).mean(0)
    return float((torch.as_tensor(values).sum((1, 2)) - explained).abs().max())
