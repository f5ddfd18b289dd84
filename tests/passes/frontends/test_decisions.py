"""What reaches Python of a traced value is followed, or ends the trace: the result is the original."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose

Decide = Callable[[Any, Tensor, Tensor], Tensor]


@functools.singledispatch
def doubled(value: Any) -> Any:
    return value


@doubled.register
def _(value: torch.Tensor) -> Tensor:
    return value * 2


class Deciding(nn.Module):
    """A recurrent layer, and a decision of Python's on what came out of it."""

    def __init__(self, decide: Decide) -> None:
        super().__init__()
        self.g = nn.GRU(3, 3, batch_first=True)
        self.decide = decide
        self.scales = nn.ParameterDict({"k4": nn.Parameter(torch.full((3,), 2.0))})

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self, x, self.g(x)[0])


DECISIONS: dict[str, Decide] = {
    "ndim in a set": lambda m, x, y: y.mean(1) if y.ndim in {3} else y,
    "dim() in a set": lambda m, x, y: y * 2 if y.dim() in {3, 4} else y,
    "dtype in a set": lambda m, x, y: y * 2 if x.dtype in {torch.float32, torch.float64} else y,
    "size in a set": lambda m, x, y: y * 2 if x.shape[1] in {4, 8} else y,
    "size in a frozenset": lambda m, x, y: y if x.shape[0] not in frozenset((2,)) else -y,
    "size in a tuple": lambda m, x, y: y * 2 if x.shape[1] in (4, 8) else y,
    "a dictionary of sizes": lambda m, x, y: y * {4: 2.0}.get(x.shape[1], 1.0),
    "a dictionary's item": lambda m, x, y: y * {4: 2.0}[x.shape[1]],
    "a text of a type": lambda m, x, y: y * 2 if str(x.dtype) == "torch.float32" else y,
    "a text of a device": lambda m, x, y: y * 2 if f"{x.device}".startswith("cpu") else y,
    "a text for a key": lambda m, x, y: y * m.scales[f"k{x.shape[1]}"],
    "repr": lambda m, x, y: y * 2 if repr(x.shape[1]) == "4" else y,
    "format": lambda m, x, y: y * 2 if f"{x.shape[1]:d}" == "4" else y,
    "single dispatch": lambda m, x, y: doubled(y),
    "class": lambda m, x, y: y * 2 if y.__class__ is Tensor else y,
    "type": lambda m, x, y: y * 2 if type(y) is Tensor else y,
    "index": lambda m, x, y: y * [1.0, 1.0, 1.0, 1.0, 2.0][x.shape[1]],
    "truth of a size": lambda m, x, y: y * 2 if x.shape[1] else y,
    "truth of a value": lambda m, x, y: y * 2 if (y.sum() < 100) else y,
    "length": lambda m, x, y: y * len(x),
    "hash": lambda m, x, y: y * (2 if hash(x.shape[1]) == hash(4) else 1),
    "match": lambda m, x, y: matched(y),
    "sorted": lambda m, x, y: y * sorted([x.shape[1], 2])[1],
    "max": lambda m, x, y: y * max(x.shape[1], 2),
    "range": lambda m, x, y: sum((y for _ in range(x.shape[1])), torch.zeros(())),
    "int": lambda m, x, y: y * int(x.shape[1]),
    "item": lambda m, x, y: y * (2 if x.sum().item() in {0.0} else 3),
    "a loop over rows": lambda m, x, y: torch.stack([row * 2 for row in y]),
}


def matched(y: Tensor) -> Tensor:
    match y.ndim:
        case 3:
            return y * 2
        case _:
            return y


@pytest.mark.parametrize("name", DECISIONS)
def test_every_decision_is_the_originals(name: str) -> None:
    model = Deciding(DECISIONS[name]).eval()
    for rows, length in ((2, 4), (3, 4)):
        x = torch.randn(rows, length, 3)
        expected = model(x)
        for rewritten in (decompose(model), decompose(model, x)):
            # The layer's sums in another order, times up to 4.
            torch.testing.assert_close(rewritten(x), expected, rtol=0, atol=1e-6)
    background = torch.randn(5, 4, 3)
    if name not in ("size in a frozenset", "length"):  # of which the number of rows decides
        found = DeepExplainer(model, background, output=lambda y: y.flatten(1)).expected_value
        torch.testing.assert_close(
            torch.as_tensor(found), model(background).flatten(1).mean(0).detach(), rtol=0, atol=1e-6
        )


class CalledTwice(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(super().__call__(x) * 2)


class CalledNorm(nn.LayerNorm):
    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().__call__(x))


class CalledTanh(nn.Tanh):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) ** 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


@pytest.mark.parametrize("make", [lambda: CalledTwice(3, 3), lambda: CalledNorm(3), CalledTanh, Encoder])
def test_a_call_of_its_own_runs_once(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), make(), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))).double()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (4, 5))
    rewritten = decompose(model)
    torch.testing.assert_close(rewritten(x), model(x), rtol=0, atol=1e-15)
    # What is outside of the forward has its rules, too.
    values = DeepExplainer(model, background).shap_values(x)
    change = (model(x) - model(background).mean(0)).detach()
    torch.testing.assert_close(torch.as_tensor(values).sum(1), change, rtol=0, atol=1e-12)
