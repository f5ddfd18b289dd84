"""How fast, and how large, is an explanation as an ONNX file, beside ``rewriter.DeepExplainer``?"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from timing import arguments, interleaved, publish
from torch import Tensor, nn

from rewriter import DeepExplainer, export_explainer_onnx

# Layer, T, H, I, N, outputs.
SIZES = [
    ("LSTM", 50, 64, 8, 10, 2),
    ("GRU", 50, 64, 8, 10, 2),
    ("LSTM", 200, 64, 8, 10, 2),
    ("LSTM", 50, 128, 16, 100, 1),
]
QUICK = [("GRU", 3, 4, 2, 2, 1)]
SAMPLES = (1, 16)
ROUNDS = 9
NOTES = [
    "Size: T,H,I,N,K; M samples at a time. export: s. file: KB; of weights: its size over that of the",
    "weights and the background. ms: of the file in onnxruntime. of ours: over DeepExplainer's time without",
    "its check, which runs LSTM and GRU in C. error: largest difference to it, relative; adds up: relative",
    "to max(1, |f|). Both with one thread, medians of 9 rounds, taken in turn.",
]


class Last(nn.Module):
    """One layer and a linear head on its last output.

    Args:
        kind: name of the layer's class.
        features: of the input.
        size: of the state.
        outputs: of the head.

    """

    def __init__(self, kind: str, features: int, size: int, outputs: int) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(features, size, batch_first=True)
        self.head = nn.Linear(size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs)."""
        result: Tensor = self.head(self.layer(x)[0][:, -1])
        return result


def measure(
    kind: str, steps: int, size: int, features: int, count: int, outputs: int
) -> list[dict[str, Any]]:
    """Write one file and time it."""
    torch.manual_seed(0)
    model, background = Last(kind, features, size, outputs).eval(), torch.randn(count, steps, features)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "explainer.onnx")
        begin = time.perf_counter()
        report = export_explainer_onnx(model, background, path)
        seconds = time.perf_counter() - begin
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    explainer = DeepExplainer(model, background, progress=False)
    held = 4 * (background.numel() + sum(each.numel() for each in model.parameters()))
    records = []
    for rows in SAMPLES:
        x = torch.randn(rows, steps, features)
        contestants: dict[str, Callable[[], Any]] = {
            "file": partial(session.run, None, {"x": x.numpy()}),
            "ours": partial(explainer.shap_values, x, check_additivity=False),
        }
        timed = interleaved(contestants, ROUNDS)
        prediction, values, base = contestants["file"]()
        expected = contestants["ours"]()
        records.append(
            {
                "layer": kind,
                "size": f"{steps},{size},{features},{count},{outputs}",
                "samples": rows,
                "export": seconds,
                "bytes": report.size,
                "of_weights": report.size / held,
                "ms": 1e3 * timed["file"].median,
                "of_ours": timed["file"].ratio_to(timed["ours"]),
                "error": float(np.abs(values - expected).max() / np.abs(expected).max()),
                "additivity": float(
                    np.abs(values.sum((1, 2), dtype=float) + base - prediction).max()
                    / max(1, np.abs(prediction).max())
                ),
                "backend": explainer.backend,
            }
        )
    return records


def main() -> None:
    """Time every size and publish the results."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    records = [each for size in (QUICK if options.quick else SIZES) for each in measure(*size)]
    header = ("layer", "size", "M", "export", "file", "of weights", "ms", "of ours", "error", "adds up")
    rows = [
        (
            each["layer"],
            each["size"],
            str(each["samples"]),
            f"{each['export']:.1f}",
            f"{each['bytes'] / 1e3:.0f}",
            f"{each['of_weights']:.2f}",
            f"{each['ms']:.1f}",
            f"{each['of_ours']:.2f}",
            f"{each['error']:.0e}",
            f"{each['additivity']:.0e}",
        )
        for each in records
    ]
    publish("onnx_explainer", options, header, rows, NOTES, records)


if __name__ == "__main__":
    main()
