"""A Keras LSTM over a sequence, explained in six ways: which fail, which are wrong, which add up.

Run it with ``python examples/09_keras.py``. The weights are the same in all of them; the output is two
numbers, the attributions go to each number of the sequence: shape (1, 8, 3, 2).
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import shap
import torch
from demo import in_keras
from torch import Tensor, nn

import rewriter
from rewriter.keras import decompose, to_torch

STEPS, INPUT, HIDDEN = 8, 3, 4


class Classifier(nn.Module):
    """An ``nn.LSTM`` and a head on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUT, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2) for ``x`` (B, T, INPUT)."""
        return self.head(self.lstm(x)[0][:, -1])


class Explained(NamedTuple):
    """What one way gives: SHAP values, or why there are none."""

    values: np.ndarray | None
    failure: str
    seconds: float


def explained(explain: Callable[[], np.ndarray]) -> Explained:
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Explained(explain(), "", time.perf_counter() - begun)
    except Exception as error:
        return Explained(None, type(error).__name__, time.perf_counter() - begun)


def stock(model: Any, background: Any, x: Any) -> Callable[[], np.ndarray]:
    return lambda: shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)


def ours(model: nn.Module, background: Tensor, x: Tensor) -> Callable[[], np.ndarray]:
    return lambda: rewriter.DeepExplainer(model, background, progress=False).shap_values(x)


def main() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        print("TensorFlow is not installed; pip install 'rnn-rewriter[tensorflow]' does that.")
        return
    from tensorflow_cells import sequence_model  # it makes Keras compute with TensorFlow

    logging.getLogger("shap").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = Classifier()
    keras_model = in_keras(model, STEPS)
    x, background = torch.randn(1, STEPS, INPUT), torch.randn(10, STEPS, INPUT)
    arrays = background.numpy(), x.numpy()
    by_hand = sequence_model(model.lstm, model.head, STEPS)

    ways = {
        "TensorFlow cell by hand, stock shap": stock(by_hand, *arrays),
        "Keras LSTM as it is, stock shap": stock(keras_model, *arrays),
        "Keras LSTM decomposed, stock shap": stock(decompose(keras_model), *arrays),
        "nn.LSTM as it is, stock shap": stock(model, background, x),
        "nn.LSTM decomposed, stock shap": stock(rewriter.decompose(model, background), background, x),
        "nn.LSTM, our engine": ours(model, background, x),
        "Keras LSTM by to_torch, our engine": ours(to_torch(keras_model), background, x),
    }
    with torch.no_grad():
        change = (model(x) - model(background).mean(0)).numpy()
    reference: np.ndarray | None = None
    head = ("", "additivity error", "SHAP values to the first", "shape", "seconds")
    print("{:36} {:>17} {:>25} {:>14} {:>8}".format(*head))
    for name, explain in ways.items():
        found = explained(explain)
        if found.values is None:
            print(f"{name:36} {found.failure:>17} {'':>25} {'':>14} {found.seconds:8.2f}")
            continue
        values = found.values
        reference = values if reference is None else reference
        error = np.abs(values.sum((1, 2)) - change).max()
        gap = np.abs(values - reference).max() / np.abs(reference).max()
        print(f"{name:36} {error:17.1e} {gap:25.1e} {values.shape!s:>14} {found.seconds:8.2f}")


if __name__ == "__main__":
    main()
