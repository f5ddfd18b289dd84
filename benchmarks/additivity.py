"""How far stock shap's attributions are from adding up, for every layer and option, as is and decomposed.

Run with: python benchmarks/additivity.py
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from timing import arguments, publish
from torch import Tensor, nn

from rewriter import decompose

# As torch initialises them; the head sees the outputs of both directions.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM, bias=False": ("LSTM", {"bias": False}),
    "LSTM, num_layers=2, bidirectional": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "LSTM, proj_size=4, bidirectional": ("LSTM", {"proj_size": 4, "bidirectional": True}),
    "GRU": ("GRU", {}),
    "GRU, num_layers=2, bidirectional": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "RNN, tanh": ("RNN", {}),
    "RNN, relu, bidirectional": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}
FEATURES, HIDDEN, SAMPLES, REFERENCES = 3, 8, 2, 5


class Classifier(nn.Module):
    """A recurrent layer and a linear head on its last output."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(FEATURES, HIDDEN, batch_first=True, **options)
        width = (options.get("proj_size") or HIDDEN) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2) for (B, T, FEATURES)."""
        return self.head(self.rnn(x)[0][:, -1])


def additivity_error(model: nn.Module, x: Tensor, background: Tensor) -> float:
    """Return max |sum of attributions - (f(x) - mean f(background))| over max(1, max |f(x)|)."""
    import shap

    explainer = shap.DeepExplainer(model, background)
    values = explainer.shap_values(x, check_additivity=False)
    with torch.no_grad():
        f, f0 = model(x).double().numpy(), model(background).double().mean(0).numpy()
    return float(np.abs(values.sum((1, 2)) - (f - f0)).max() / max(1.0, np.abs(f).max()))


def main() -> None:
    """Explain every layer with stock shap, as it is and decomposed, in both precisions."""
    options = arguments("Additivity of stock shap's attributions, for every layer and option.")
    # What shap says of the layers as they are is the reason for this project.
    warnings.simplefilter("ignore")
    lengths = (1, 10) if options.quick else (1, 10, 50, 200)
    header = ("layer", "T", "as it is", "decomposed, float32", "decomposed, float64")
    records = []
    for name, (kind, layer) in LAYERS.items():
        for steps in lengths:
            torch.manual_seed(0)
            model = Classifier(kind, **layer)
            x, background = (torch.randn(n, steps, FEATURES) for n in (SAMPLES, REFERENCES))
            errors = [
                additivity_error(model, x, background),
                additivity_error(decompose(model), x, background),
                additivity_error(decompose(model.double()), x.double(), background.double()),
            ]
            records.append({"layer": name, "T": steps} | dict(zip(header[2:], errors, strict=True)))
    rows = [(each["layer"], str(each["T"]), *(f"{each[key]:.1e}" for key in header[2:])) for each in records]
    worst = ", ".join(f"{key} {max(each[key] for each in records):.1e}" for key in header[2:])
    notes = [
        "Worst |sum of attributions - (f(x) - mean f(background))| / max(1, max |f(x)|).",
        f"worst: {worst}",
    ]
    publish("additivity", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
