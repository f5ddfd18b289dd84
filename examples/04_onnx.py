"""A projected LSTM as ONNX without a recurrent operator; torch's own export of it does not run.

Run with: python examples/04_onnx.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from rewriter import export_onnx


class Classifier(nn.Module):
    """A projected, bidirectional LSTM and a linear head on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 32, batch_first=True, bidirectional=True, proj_size=8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores (B, 4) for sequences (B, T, 6)."""
        return self.head(self.lstm(x)[0][:, -1])


def main() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    x = torch.randn(3, 50, 6)
    with tempfile.TemporaryDirectory() as folder:
        flat = Path(folder, "flat.onnx")
        print(export_onnx(model, x, flat, output_names=["scores"]))
        print()
        rolled = Path(folder, "rolled.onnx")
        print(export_onnx(model, x, rolled, output_names=["scores"], loops=True))
        print()
        longer = torch.randn(9, 75, 6)
        (scores,) = onnxruntime.InferenceSession(rolled).run(["scores"], {"x": longer.numpy()})
    with torch.no_grad():
        difference = (model(longer) - torch.from_numpy(scores)).abs().max()
    print(f"9 sequences of 75 steps, onnxruntime against torch: largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
