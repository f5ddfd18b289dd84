"""What hangs on a module and is no part of it, as after training, is neither walked into nor in the way."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.user_code.clone import clone_structure, private_clone
from rewriter import DeepExplainer, check_equivalence, decompose


class Strategy:
    def __init__(self, model: nn.Module, file: Any) -> None:
        self.model, self.file = weakref.proxy(model), file
        self.lock, self.batches = threading.Lock(), iter(range(3))


class Trainer:
    """Refers to the model, and to what cannot be copied."""

    def __init__(self, model: nn.Module, file: Any) -> None:
        self.strategy = Strategy(model, file)
        self.model, self.logger, self.callbacks = model, logging.getLogger("training"), [self]
        self.loop = threading.RLock()


class Fitted(nn.Module):
    def __init__(self, file: Any) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        self.trainer: Any = None
        self._trainer = Trainer(self, file)
        self.trainer = weakref.proxy(self._trainer)
        # As torch would make a proxy of a module a child.
        self.__dict__["last"] = weakref.proxy(self.head)
        self.log_file, self.lock, self.condition = file, threading.Lock(), threading.Condition()
        self.numbers: Iterator[int] = (n for n in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.tanh(self.gru(x)[0][:, -1]))
        return y


@pytest.fixture
def fitted(tmp_path: Path) -> Iterator[Fitted]:
    with (tmp_path / "log").open("w") as file:
        yield Fitted(file).eval()


def test_a_fitted_model_is_rewritten_and_explained(fitted: Fitted) -> None:
    x, background = torch.randn(2, 5, 3), torch.randn(4, 5, 3)
    for rewritten in (decompose(fitted), decompose(fitted, x)):
        torch.testing.assert_close(rewritten(x), fitted(x), rtol=0, atol=1e-6)
        assert check_equivalence(fitted, rewritten, x)
    values = DeepExplainer(fitted, background).shap_values(x)
    change = (fitted(x) - fitted(background).mean(0)).detach()
    torch.testing.assert_close(torch.as_tensor(values).sum((1, 2)), change.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("clone", [clone_structure, private_clone])
def test_a_proxy_of_a_part_is_one_of_the_clones_part(fitted: Fitted, clone: Any) -> None:
    copy = clone(fitted)
    assert type(copy.last) in weakref.ProxyTypes
    assert copy.last.__init__.__self__ is copy.head
    assert fitted.__dict__["last"].__init__.__self__ is fitted.head
    assert next(fitted.numbers) == 0
