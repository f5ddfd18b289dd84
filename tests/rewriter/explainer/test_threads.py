"""Threads that only run models notice nothing of others that decompose and explain."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, Report, decompose

# Of each thread that explains, and of each that runs a model.
ROUNDS = 8
CALLS = 1000


class Attends(nn.Module):
    """Makes tensors of sizes, and calls a function of its own globals, both of which a trace patches."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, x.shape[0], 4)
        h = torch.tanh(self.gru(x, state)[0]) / sqrt(4)
        weights = torch.softmax(h.sum(-1), 1)
        y: Tensor = self.head((weights.unsqueeze(-1) * h).sum(1))
        return y


class Branches(Attends):
    """Code that torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


def _in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


# Thousands of calls, which coverage would run at half the speed.
@pytest.mark.unmeasured
def test_models_are_served_while_others_are_decomposed_and_explained() -> None:
    served, explained = Branches().eval(), Attends().eval()
    x, background = torch.randn(3, 5, 3), torch.randn(4, 5, 3)
    with torch.no_grad():
        expected = served(x)
    values = DeepExplainer(explained, background).shap_values(x)
    found, calls = Counter[str](), Counter[str]()
    busy = [True, True]

    def serve(name: str, model: Callable[[Tensor], Tensor]) -> None:
        while any(busy) or calls[name] < CALLS:
            try:
                with torch.no_grad():
                    found["as it is" if torch.equal(model(x), expected) else "something else"] += 1
            except Exception as error:
                found[repr(error)] += 1
            calls[name] += 1

    def explain(worker: int) -> None:
        try:
            for k in range(ROUNDS):
                own = copy.deepcopy((explained, served)[k % 2])
                rewritten = decompose(own)
                # What becomes a graph does so whatever others run.
                assert list(Report.of(rewritten).islands) == ([""] if k % 2 else [])
                with torch.no_grad():
                    torch.testing.assert_close(rewritten(x), own(x), rtol=0, atol=1e-6)
                got = DeepExplainer(copy.deepcopy(explained), background).shap_values(x)
                # Sums in another order, of numbers below 1 in float32.
                found["explained" if np.abs(got - values).max() < 1e-6 else "explained wrong"] += 1
        except BaseException as error:
            found[repr(error)] += 1
        finally:
            busy[worker] = False

    models = [served, served, copy.deepcopy(served), copy.deepcopy(served)]
    servers = [partial(serve, str(k), model) for k, model in enumerate(models)]
    _in_threads([*servers, partial(explain, 0), partial(explain, 1)])
    assert set(found) == {"as it is", "explained"}, found
    assert found["explained"] == 2 * ROUNDS
