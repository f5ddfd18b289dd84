"""Prediction and SHAP values in a web page: draw into a signal, and see at once why the model says so.

Run with: python examples/10_in_the_browser.py [FOLDER]

It trains a classifier on BasicMotions, recordings of a smart watch that aeon ships, and puts together a
folder of static files, by default ``out/browser``: the page of examples/browser, the explainer as ONNX, some
recordings, and onnxruntime-web, which npm installs. docs/guides/browser.md shows it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from aeon.datasets import load_basic_motions
from torch import Tensor, nn

from rewriter import export_explainer_onnx

PAGE = Path(__file__).parent / "browser"
RUNTIME = PAGE / "node_modules/onnxruntime-web/dist"
# All of onnxruntime that a page needs: one thread, no GPU.
PARTS = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
CHANNELS = [f"{sensor} {axis}" for sensor in ("accelerometer", "gyroscope") for axis in "xyz"]
# The data set names no units; these are what its ranges, 3 g and 2000 degrees a second, are round numbers in.
UNITS = {"accelerometer": "m/s²", "gyroscope": "rad/s"}
# The watch takes ten samples a second; the mean of two at a time is enough to tell the activities.
SECONDS_PER_STEP = 0.2
REFERENCES = 20
RECORDINGS_PER_ACTIVITY = 3


class Recordings(NamedTuple):
    """Recordings (N, 50, 6) and what the person did, as an index into ``activities``."""

    x: Tensor
    labels: Tensor
    activities: list[str]


class MotionClassifier(nn.Module):
    """An LSTM over the scaled recording, and a Linear on the mean of its outputs."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, x: Tensor, activities: int) -> None:
        super().__init__()
        self.register_buffer("mean", x.mean((0, 1)))
        self.register_buffer("deviation", x.std((0, 1)))
        self.lstm = nn.LSTM(x.shape[2], 24, batch_first=True)
        self.head = nn.Linear(24, activities)

    def logits(self, x: Tensor) -> Tensor:
        """Return scores (B, activities)."""
        return self.head(self.lstm((x - self.mean) / self.deviation)[0].mean(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (B, activities) of recordings (B, T, channels)."""
        return self.logits(x).softmax(-1)


def load(split: str) -> Recordings:
    """Return 40 recordings, to train or to test with."""
    series, names = load_basic_motions(split=split)
    activities = sorted({str(name) for name in names})
    x = torch.tensor(series, dtype=torch.float32).transpose(1, 2).unflatten(1, (-1, 2)).mean(2)
    return Recordings(x, torch.tensor([activities.index(name) for name in names]), activities)


def trained(data: Recordings) -> MotionClassifier:
    torch.manual_seed(0)
    model = MotionClassifier(data.x, len(data.activities))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        # Smoothed, so that no probability is so near to 1 that nothing moves it.
        loss = nn.functional.cross_entropy(model.logits(data.x), data.labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def references(data: Recordings) -> Tensor:
    """Return recordings of all activities, evenly."""
    return data.x[:: len(data.x) // REFERENCES]


def shown(test: Recordings, accuracy: float) -> dict[str, Any]:
    """Return what the page shows: recordings, names, units."""
    chosen = [
        int(place)
        for k in range(len(test.activities))
        for place in (test.labels == k).nonzero()[:RECORDINGS_PER_ACTIVITY, 0]
    ]
    limits = test.x[chosen].abs().amax((0, 1))
    return {
        "about": f"BasicMotions (UEA archive), test recordings. An LSTM, right for {accuracy:.1%} of them; "
        f"SHAP values by DeepLIFT's rules against {REFERENCES} recordings of the training set.",
        "steps": test.x.shape[1],
        "seconds": SECONDS_PER_STEP,
        "activities": test.activities,
        "channels": [
            {"name": name, "unit": UNITS[name.split()[0]], "limit": 5 * (float(limit) // 5 + 1)}
            for name, limit in zip(CHANNELS, limits, strict=True)
        ],
        "recordings": [
            {
                "name": f"{place + 1}: {test.activities[int(test.labels[place])]}",
                "activity": int(test.labels[place]),
                "values": test.x[place].flatten().tolist(),
            }
            for place in chosen
        ],
    }


def runtime() -> list[Path]:
    """Return the files of onnxruntime-web."""
    files = [RUNTIME / name for name in PARTS]
    if not all(file.exists() for file in files):
        raise SystemExit(f"onnxruntime-web is not there; to install it: npm ci --prefix {PAGE}")
    return files


def write(folder: Path, model: MotionClassifier, background: Tensor, test: Recordings) -> None:
    """Write all files of the page into a folder."""
    files = [*PAGE.glob("*.html"), *PAGE.glob("*.css"), *PAGE.glob("*.mjs"), *runtime()]
    folder.mkdir(parents=True, exist_ok=True)
    print(export_explainer_onnx(model, background, folder / "explainer.onnx"))
    with torch.no_grad():
        accuracy = (model(test.x).argmax(1) == test.labels).float().mean().item()
    (folder / "data.json").write_text(json.dumps(shown(test, accuracy), ensure_ascii=False), encoding="utf-8")
    for file in files:
        shutil.copy(file, folder)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/browser")
    runtime()
    learnt = load("train")
    write(folder, trained(learnt), references(learnt), load("test"))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    for name, size in sorted(sizes.items(), key=lambda each: each[1]):
        print(f"{size:>12,} {name}")
    print(f"{sum(sizes.values()):>12,} bytes in all, static files only")
    print(f"to look at it: python -m http.server -d {folder}, then open http://localhost:8000")


if __name__ == "__main__":
    main()
