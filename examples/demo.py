"""Explain an activity classifier exactly, compare, export: ``make demo``.

Trains a small LSTM on BasicMotions, recordings of a smart watch that aeon ships, explains it with stock
shap as it is and decomposed, and so the same weights in Keras' LSTM; has onnxruntime alone explain it,
and prints one table. Writes a heat map, two ONNX files and a report to look through into ``out/``.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shap
import torch
from aeon.datasets import load_basic_motions
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from rewriter import (
    DeepExplainer,
    check_equivalence,
    decompose,
    export_explainer_onnx,
    export_onnx,
    html_report,
)
from rewriter.keras import to_keras, to_torch

CHANNELS = [f"{sensor} {axis}" for sensor in ("accelerometer", "gyroscope") for axis in "xyz"]
# The watch takes ten samples a second; the mean of two at a time is enough to tell the activities.
SECONDS_PER_STEP = 0.2
# What a process runs that cannot import torch.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
numpy.save(sys.argv[3], session.run(["shap_values"], {"x": numpy.load(sys.argv[2])})[0])
"""


class Recordings(NamedTuple):
    """Recordings (N, 50, 6) and what the person did, as an index into ``activities``."""

    x: Tensor
    labels: Tensor
    activities: list[str]


class MotionClassifier(nn.Module):
    """An LSTM over the recording, and a Linear on its last hidden state."""

    def __init__(self, channels: int, activities: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, 32, batch_first=True)
        self.head = nn.Linear(32, activities)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, activities) for recordings (B, T, channels)."""
        output, _ = self.lstm(x)
        return self.head(output[:, -1])


def load() -> tuple[Recordings, Recordings]:
    """Return 40 recordings to train with and 40 to test with, scaled alike."""
    parts = [load_basic_motions(split=split) for split in ("train", "test")]
    activities = sorted(set(parts[0][1]))
    x, x_test = (
        torch.tensor(series, dtype=torch.float32).transpose(1, 2).unflatten(1, (-1, 2)).mean(2)
        for series, _ in parts
    )
    labels, labels_test = (torch.tensor([activities.index(name) for name in names]) for _, names in parts)
    mean, deviation = x.mean((0, 1)), x.std((0, 1))
    return (
        Recordings((x - mean) / deviation, labels, activities),
        Recordings((x_test - mean) / deviation, labels_test, activities),
    )


def train(model: nn.Module, data: Recordings) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in tqdm(range(200), desc="train", unit="epoch"):
        loss = nn.functional.cross_entropy(model(data.x), data.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def explain(model: nn.Module, background: Tensor, x: Tensor, bar: str | None = None) -> np.ndarray:
    """Return stock shap's values (N, T, channels, outputs), one recording at a time for the progress bar."""
    with warnings.catch_warnings():
        # As it is, nn.LSTM makes shap warn, and raise because the values do not add up.
        warnings.simplefilter("ignore")
        explainer = shap.DeepExplainer(model, background)
        values = [
            explainer.shap_values(row, check_additivity=False)
            for row in tqdm(x.split(1), desc=bar, unit="recording", disable=bar is None)
        ]
    return np.concatenate(values)


def additivity_error(model: nn.Module, background: Tensor, x: Tensor, values: np.ndarray) -> float:
    with torch.no_grad():
        explained = (model(x) - model(background).mean(0)).numpy()
    return float(np.abs(values.sum((1, 2)) - explained).max())


class LogitOf(nn.Module):
    """One output of a classifier."""

    def __init__(self, model: MotionClassifier, activity: int) -> None:
        super().__init__()
        self.lstm = model.lstm
        self.head = nn.Linear(model.head.in_features, 1, dtype=model.head.weight.dtype)
        self.head.weight = nn.Parameter(model.head.weight[activity : activity + 1])
        self.head.bias = nn.Parameter(model.head.bias[activity : activity + 1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit (B, 1)."""
        return self.head(self.lstm(x)[0][:, -1])


def differences_to_tensorflow(
    model: MotionClassifier, background: Tensor, x: Tensor
) -> tuple[float, float] | None:
    """Return how far the SHAP values of one recording, as is and decomposed, are from TensorFlow's.

    All run in float64, because in float32 TensorFlow's values are off by some 1e-6 themselves: shap's
    rules for it divide by differences. That they leave out the smallest differences remains, some 1e-9.
    Return None if TensorFlow is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        return None
    from tensorflow_cells import sequence_model

    model, background, x = copy.deepcopy(model).double(), background.double(), x.double()
    logit = LogitOf(model, int(model(x).argmax()))
    by_hand = sequence_model(logit.lstm, logit.head, x.shape[1])
    with warnings.catch_warnings():
        # shap warns of every TensorFlow since 2.4.
        warnings.simplefilter("ignore")
        theirs = shap.DeepExplainer(by_hand, background.numpy()).shap_values(x.numpy())
    as_is = explain(logit, background, x)
    ours = explain(decompose(logit), background, x)
    return float(np.abs(as_is - theirs).max()), float(np.abs(ours - theirs).max())


def in_keras(model: nn.Module, steps: int) -> Any:
    """Return the same classifier with Keras' LSTM; on TensorFlow if it is installed, else on torch."""
    os.environ["KERAS_BACKEND"] = "torch" if importlib.util.find_spec("tensorflow") is None else "tensorflow"
    from keras import Input, Model, layers

    sequence = Input((steps, model.lstm.input_size))
    output, *_ = to_keras(model.lstm)(sequence)
    head = layers.Dense(model.head.out_features)
    whole = Model(sequence, head(output[:, -1]))
    head.set_weights([model.head.weight.detach().numpy().T, model.head.bias.detach().numpy()])
    return whole


def keras_errors(model: MotionClassifier, background: Tensor, x: Tensor) -> tuple[str, str]:
    """Return the additivity errors for Keras' LSTM: of stock shap, or how it fails, and of ours."""
    keras_model = in_keras(model, x.shape[1])
    on_torch = isinstance(keras_model, nn.Module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = [each if on_torch else each.numpy() for each in (background, x)]
            values = shap.DeepExplainer(keras_model, given[0]).shap_values(given[1], check_additivity=False)
        as_is = f"{additivity_error(model, background, x, values):.1e}"
    except Exception as error:  # shap has no error of its own for what it cannot explain
        as_is = f"{type(error).__name__}"
    ours = DeepExplainer(to_torch(keras_model), background, progress=False).shap_values(x)
    return as_is, f"{additivity_error(model, background, x, ours):.1e}"


def explain_without_torch(model: nn.Module, background: Tensor, x: Tensor, file: Path) -> np.ndarray:
    """Write the explainer as a file; return what onnxruntime makes of it where there is no torch."""
    export_explainer_onnx(model, background, file)
    given, found = file.with_name("x.npy"), file.with_name("values.npy")
    np.save(given, x.numpy())
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, file, given, found], check=True)
    values = np.load(found)
    given.unlink()
    found.unlink()
    return values


def write_report(model: nn.Module, background: Tensor, x: Tensor, activities: list[str], file: Path) -> None:
    explainer = DeepExplainer(
        model, background, feature_names=CHANNELS, output_names=activities, progress=False
    )
    times = [f"{step * SECONDS_PER_STEP:.1f} s" for step in range(x.shape[1])]
    html_report(explainer, x, file, title="What the watch felt", row_names=times)


def draw(x: Tensor, values: np.ndarray, titles: list[str], path: Path) -> None:
    """Draw one panel per recording: SHAP values as colours, the signal of each channel as a line."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    # A few values far out would leave the rest white.
    limit = float(np.quantile(np.abs(values), 0.995))
    steps, channels = x.shape[1:]
    edges = np.arange(steps + 1) * SECONDS_PER_STEP
    middles = edges[:-1] + SECONDS_PER_STEP / 2
    for panel, signal, value, title in zip(panels, x.numpy(), values, titles, strict=True):
        mesh = panel.pcolormesh(
            edges, np.arange(channels + 1), value.T, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True
        )
        for k in range(channels):
            centred = signal[:, k] - signal[:, k].mean()
            line = k + 0.5 - 0.42 * centred / max(1.0, np.abs(centred).max())
            panel.plot(middles, line, color="0.15", linewidth=0.9)
            panel.axhline(k, color="white", linewidth=2)
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_yticks(np.arange(channels) + 0.5, CHANNELS)
        panel.set_ylim(channels, 0)
        panel.label_outer()
    for panel in panels[2:]:
        panel.set_xlabel("time [s]")
    figure.colorbar(
        mesh, ax=panels, extend="both", aspect=40, label="SHAP value: share in the predicted logit"
    )
    figure.suptitle("What made the LSTM predict the activity (lines: the signals, each to its own scale)")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a model as small as this one is slower with more

    learnt, test = load()
    model = MotionClassifier(len(CHANNELS), len(test.activities))
    train(model, learnt)
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.x).argmax(1) == test.labels).float().mean().item()

    # Half of the training data as references, and the first test recording of each activity.
    background = learnt.x[::2]
    chosen = [int((test.labels == k).nonzero()[0]) for k in range(len(test.activities))]
    x = test.x[chosen]
    decomposed = decompose(model)
    as_is = explain(model, background, x, "explain as it is")
    values = explain(decomposed, background, x, "explain decomposed")

    probabilities = model(x).softmax(1).detach()
    predictions = probabilities.argmax(1)
    titles = [
        f"predicted {test.activities[k]} (p = {probability:.2f}), was {test.activities[label]}"
        for k, probability, label in zip(predictions, probabilities.amax(1), test.labels[chosen], strict=True)
    ]
    picture, file = out / "basic_motions.png", out / "basic_motions.onnx"
    draw(x, np.stack([value[:, :, k] for value, k in zip(values, predictions, strict=True)]), titles, picture)

    explainer_file = out / "basic_motions_explainer.onnx"

    with tqdm(total=6, desc="compare outputs", unit="step") as bar:
        equivalence = check_equivalence(model, decomposed, x)
        bar.update()
        bar.set_description("export to ONNX")
        onnx = export_onnx(model, x, file)
        bar.update()
        bar.set_description("compare with TensorFlow")
        tensorflow = differences_to_tensorflow(model, background, x[:1])
        bar.update()
        bar.set_description("explain Keras' LSTM")
        keras = keras_errors(model, background, x)
        bar.update()
        bar.set_description("explain without torch")
        elsewhere = explain_without_torch(model, background, x, explainer_file)
        bar.update()
        bar.set_description("write the report")
        write_report(model, background, x, test.activities, out / "report.html")
        bar.update()

    table = Table(
        "", "as it is", "decomposed", title=f"BasicMotions, accuracy on the test set {accuracy:.3f}"
    )
    table.add_row(
        "additivity error of stock DeepExplainer",
        f"{additivity_error(model, background, x, as_is):.1e}",
        f"{additivity_error(decomposed, background, x, values):.1e}",
    )
    table.add_row(
        "outputs: largest difference to the original",
        "",
        f"{(model(test.x) - decomposed(test.x)).abs().max():.1e}",
    )
    table.add_row(
        "outputs and gradients, float32 and float64", "", "equal" if equivalence.equal else "NOT EQUAL"
    )
    if tensorflow is None:
        table.add_row("SHAP values against TensorFlow's", "", "TensorFlow is not installed")
    else:
        table.add_row("SHAP values against TensorFlow's, float64", *(f"{each:.1e}" for each in tensorflow))
    table.add_row("the same weights in Keras' LSTM: additivity error", *keras)
    table.add_row(
        "explained by onnxruntime alone: additivity error",
        "",
        f"{additivity_error(model, background, x, elsewhere):.1e}",
    )
    table.add_row("ONNX without LSTM: onnxruntime against torch", "", f"{max(onnx.errors.values()):.1e}")
    Console(width=100).print(table)
    seconds = time.perf_counter() - started
    print(f"wrote {picture}, {file} ({onnx.size:,} bytes) and {explainer_file} in {seconds:.0f} s")
    print(f"look through the explanations in {out / 'report.html'}")


if __name__ == "__main__":
    main()
