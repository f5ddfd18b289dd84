"""What stands for a module until it is imported stays what it is, as Keras' of TensorFlow does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rewriter import decompose


class NotImportedYet:
    """A module that is not installed: it fails as soon as anything of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError("this requires a module that is not installed")


class Modules:
    absent = NotImportedYet()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lstm(x)[0]
        return Modules.absent.relu(out) if out.dim() == 5 else out


def test_a_module_that_is_not_imported_is_not_asked() -> None:
    model, x = Model(), torch.randn(4, 2, 3)
    assert torch.allclose(decompose(model)(x), model(x), atol=1e-6)
