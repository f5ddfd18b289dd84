"""SHAP values where there is no torch: prediction and explanation in one ONNX file.

Run with: python examples/07_explainer_as_onnx.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rewriter import DeepExplainer, export_explainer_onnx

# What runs elsewhere: NumPy and onnxruntime are all that it needs.
ELSEWHERE = """
import sys
sys.modules["torch"] = None  # an import of torch would fail
import numpy as np, onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(f"{folder}/explainer.onnx")
prediction, values, base = session.run(None, {"x": np.load(f"{folder}/x.npy")})
error = np.abs(values.sum((1, 2)) + base - prediction).max()
print(f"without torch: values {values.shape}, additivity error {error:.1e}")
np.save(f"{folder}/values.npy", values)
"""


class Classifier(nn.Module):
    """An LSTM and a linear head on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores (B, 3) for sequences (B, T, 4)."""
        return self.head(self.lstm(x)[0][:, -1])


def main() -> None:
    torch.manual_seed(0)
    model, background, x = Classifier().eval(), torch.randn(10, 30, 4), torch.randn(5, 30, 4)
    with tempfile.TemporaryDirectory() as folder:
        print(export_explainer_onnx(model, background, Path(folder, "explainer.onnx")))
        np.save(f"{folder}/x.npy", x.numpy())
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, folder], check=True, capture_output=True, text=True
        )
        print(done.stdout, end="")
        values = np.load(f"{folder}/values.npy")
    expected = DeepExplainer(model, background).shap_values(x)
    print(f"difference to DeepExplainer here: {np.abs(values - expected).max() / np.abs(expected).max():.1e}")


if __name__ == "__main__":
    main()
