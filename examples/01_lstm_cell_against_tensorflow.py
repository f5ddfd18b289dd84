"""One LSTM cell, explained in TensorFlow by hand, in PyTorch as it is, and in PyTorch decomposed.

Run it with ``python examples/01_lstm_cell_against_tensorflow.py``. The output is the new cell state;
the attributions go to the input x, the hidden state h and the cell state c: shape (1, 7, 2).
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np
import shap
import torch
from torch import Tensor, nn

from rewriter import decompose

INPUT, HIDDEN = 3, 2


class CellState(nn.Module):
    """The new cell state of an LSTM cell whose input and states come side by side in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(INPUT, HIDDEN)

    def forward(self, joint: Tensor) -> Tensor:
        """Return (B, 2) for ``joint`` (B, 7)."""
        x, h, c = joint.split([INPUT, HIDDEN, HIDDEN], 1)
        return self.cell(x, (h, c))[1]


class Explained(NamedTuple):
    """What one way to explain the cell gives."""

    name: str
    state: np.ndarray
    values: np.ndarray
    error: float
    warnings: int


def explain(name: str, model: Any, background: Any, x: Any) -> Explained:
    """Explain with stock shap and count what it warns of, modules that it has no rule for."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explainer = shap.DeepExplainer(model, background)
        values = explainer.shap_values(x, check_additivity=False)
    unknown = sum("unrecognized nn.Module" in str(warning.message) for warning in caught)
    state = model(x).detach().numpy() if isinstance(model, nn.Module) else model([x]).numpy()
    expected = np.asarray(explainer.expected_value)
    error = np.abs(values.sum(1) - (state - expected)).max()
    return Explained(name, state, values, float(error), unknown)


def explain_in_tensorflow(model: CellState, background: Tensor, x: Tensor) -> Explained | None:
    if importlib.util.find_spec("tensorflow") is None:
        return None
    from tensorflow_cells import cell_state_model

    by_hand = cell_state_model(model.cell)
    return explain("TensorFlow, by hand", by_hand, background.numpy(), x.numpy())


def main() -> None:
    torch.manual_seed(0)
    model = CellState()
    # A hidden state lies between -1 and 1.
    rows = torch.cat([torch.randn(11, INPUT), 2 * torch.rand(11, 2 * HIDDEN) - 1], 1)
    x, background = rows[:1], rows[1:]

    reference = explain_in_tensorflow(model, background, x)
    results = [
        explain("nn.LSTMCell as it is", model, background, x),
        explain("nn.LSTMCell decomposed", decompose(model), background, x),
    ]
    head = ("", "additivity error", "warnings", "cell state to TF", "SHAP values to TF")
    line = "{:<24}{:>18}{:>11}{:>18}{:>19}"
    print(f"attributions of shape {results[0].values.shape}, {len(background)} references\n")
    print(line.format(*head))
    for result in [reference, *results] if reference else results:
        state = values = "-"
        if reference and result is not reference:
            state = f"{np.abs(result.state - reference.state).max():.2e}"
            values = f"{np.abs(result.values - reference.values).max():.2e}"
        print(line.format(result.name, f"{result.error:.2e}", result.warnings, state, values))
    if reference is None:
        print("\nTensorFlow is not installed: its row and the columns that compare with it are left out.")


if __name__ == "__main__":
    main()
