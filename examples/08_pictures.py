"""Pictures of what recurrent models go by: ``rewriter.plot`` and ``shap.plots`` side by side.

Run it with ``python examples/08_pictures.py``; the pictures go into the folder that is named behind it, or
into ``out``. The recordings of a smart watch (BasicMotions) ship with aeon; the text is what Python
says of its modules, on every machine. docs/show_and_serve/pictures.md shows them.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import shap
import torch
from demo import CHANNELS, SECONDS_PER_STEP, MotionClassifier, load
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose, html_report, plot

mpl.use("Agg")
import matplotlib.pyplot as plt

MATHEMATICS = ("math", "cmath", "statistics", "random", "fractions", "decimal", "numbers", "operator")
SYSTEM = ("os", "os.path", "shutil", "socket", "subprocess", "pathlib", "tempfile", "signal", "glob")
WORDS = 14


class Topic(nn.Module):
    """An LSTM over the words of a sentence: is it about mathematics (above 0), or about the system?"""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 12, padding_idx=0)
        self.lstm, self.head = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, words: Tensor) -> Tensor:
        """Return scores (B, 1) for numbers of words (B, T)."""
        return self.head(self.lstm(self.embedding(words))[0].mean(1))


def sentences(modules: tuple[str, ...]) -> list[list[str]]:
    """Return the first sentence of what Python says about each function, as words."""
    found = {}
    for name in modules:
        for each in vars(importlib.import_module(name)).values():
            text = (getattr(each, "__doc__", None) or "").strip().split("\n\n")[0]
            words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
            if callable(each) and len(words) >= 4:
                found[" ".join(words)] = words[:WORDS]
    return list(found.values())


def fit(model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    several = y.dtype == torch.long
    for _ in range(rounds):
        out = model(x)
        loss = (
            nn.functional.cross_entropy(out, y)
            if several
            else nn.functional.binary_cross_entropy_with_logits(out[:, 0], y)
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def saved(folder: Path, name: str) -> None:
    """Write what was drawn last, small."""
    plt.gcf().savefig(folder / f"{name}.png", dpi=72, bbox_inches="tight", pil_kwargs={"optimize": True})
    plt.close("all")


def of_motions(folder: Path) -> None:
    learnt, test = load()
    model = MotionClassifier(len(CHANNELS), len(test.activities))
    fit(model, learnt.x, learnt.labels, 120)
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.x).argmax(1) == test.labels).float().mean()
    print(f"BasicMotions: accuracy {accuracy:.2f} on recordings that it has not seen")
    explainer = DeepExplainer(model, learnt.x[::2], output_names=test.activities, progress=False)
    every = explainer(test.x)
    running = test.activities.index("running")
    row = int((test.labels == running).nonzero()[0])
    of_running = every[..., running]

    plot.heatmap(of_running, sample=row, feature_names=CHANNELS)
    saved(folder, "heatmap")
    plot.over_time(of_running, sample=row, feature_names=CHANNELS, max_display=4)
    saved(folder, "over_time")
    standing = learnt.x[learnt.labels == test.activities.index("standing")]
    against = {"all activities": learnt.x[::2], "standing": standing, "zeros": torch.zeros_like(learnt.x[:1])}
    x = test.x[row : row + 1]
    plot.references(
        {name: DeepExplainer(model, each, progress=False)(x)[..., running] for name, each in against.items()},
        feature_names=CHANNELS,
    )
    saved(folder, "references")
    by_gate = plot.gate_values(model, model.lstm, learnt.x[::2], x)[..., running]
    plot.gates(by_gate)
    saved(folder, "gates")
    shares = np.abs(by_gate.values[0]).sum(0)
    print(
        "running, by gate: "
        + ", ".join(
            f"{name} {share:.0%}"
            for name, share in zip(by_gate.feature_names, shares / shares.sum(), strict=True)
        )
    )
    with_shap(folder, of_running, row)
    names = [f"recording {k}: {test.activities[label]}" for k, label in enumerate(test.labels)]
    asked = {
        "feature_names": CHANNELS,
        "sample_names": names,
        "title": "What somebody does, by a smart watch",
    }
    print(html_report(explainer, test.x, folder / "report.html", **asked))


def with_shap(folder: Path, explanation: Any, row: int) -> None:
    """Draw by ``shap.plots``, which takes one row of features per sample, or images."""
    steps = explanation.shape[1]
    # What a channel added over all steps: sums of values are values.
    channels = shap.Explanation(
        explanation.values.sum(1),
        explanation.base_values,
        explanation.data.std(1),
        feature_names=[f"variation of {name}" for name in CHANNELS],
    )
    shap.plots.bar(channels, show=False)
    saved(folder, "shap_bar")
    shap.plots.beeswarm(channels, show=False)
    saved(folder, "shap_beeswarm")
    shap.plots.heatmap(channels, show=False)
    saved(folder, "shap_heatmap")
    # What each channel added in each second.
    second = round(1 / SECONDS_PER_STEP)
    by_second = explanation.values[row].reshape(steps // second, second, len(CHANNELS)).sum(1)
    names = [f"{name}, second {k}" for k in range(len(by_second)) for name in CHANNELS]
    mean = explanation.data[row].reshape(steps // second, second, len(CHANNELS)).mean(1).ravel().round(2)
    shap.plots.waterfall(
        shap.Explanation(by_second.ravel(), explanation.base_values[row], mean, feature_names=names),
        show=False,
    )
    saved(folder, "shap_waterfall")
    # A recording is an image with a row for each channel; shap wants pixels about as high as they are wide.
    values, data = (each[row : row + 1].transpose(0, 2, 1) for each in (explanation.values, explanation.data))
    high = [np.repeat(each, 6, 1)[..., None] for each in (values, (data - data.min()) / np.ptp(data))]
    shap.plots.image([high[0] / 6], high[1], show=False)
    saved(folder, "shap_image")


def of_text(folder: Path) -> None:
    both = [(words, topic) for topic, of in ((1.0, MATHEMATICS), (0.0, SYSTEM)) for words in sentences(of)]
    numbers = {word: k for k, word in enumerate(sorted({word for words, _ in both for word in words}), 1)}
    ids = torch.zeros(len(both), WORDS, dtype=torch.long)
    for k, (words, _) in enumerate(both):
        ids[k, : len(words)] = torch.tensor([numbers[word] for word in words])
    topics = torch.tensor([topic for _, topic in both])
    apart = torch.arange(len(both)) % 4 == 0
    model = Topic(1 + len(numbers))
    fit(model, ids[~apart], topics[~apart], 60)
    model.eval()
    with torch.no_grad():
        scores = model(ids)[:, 0]
    accuracy = ((scores > 0) == (topics > 0.5))[apart].float().mean()
    print(f"Python's documentation: accuracy {accuracy:.2f} on sentences that it has not seen")
    # The surest of the longer ones, and what its words added to an empty sentence.
    long = (ids > 0).sum(1) > 8
    row = int(torch.where(apart & long, scores, -torch.inf).argmax())
    words, _ = both[row]
    explanation = DeepExplainer(
        (model, model.embedding), torch.zeros(1, WORDS, dtype=torch.long), progress=False
    )(ids[row : row + 1])
    plot.tokens(explanation, words)
    saved(folder, "tokens")
    plot.rewrite(model, decompose(model))
    saved(folder, "rewrite")
    added = explanation.values[0].sum(1)
    print(f"mathematics by: {words[int(added.argmax())]}")
    told = shap.Explanation(
        added[: len(words)], explanation.base_values[0], np.array([f"{word} " for word in words])
    )
    # shap puts numbers into colours by their repr, which NumPy 2 begins with the type.
    with np.printoptions(legacy="1.25"):
        page = shap.plots.text(told, display=False)
    (folder / "shap_text.html").write_text(page, encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    np.random.seed(0)  # shap shuffles what it draws
    torch.set_num_threads(1)  # models as small as these are slower with more
    # shap.plots uses what matplotlib and numpy are about to drop.
    warnings.simplefilter("ignore", (DeprecationWarning, PendingDeprecationWarning, FutureWarning))
    of_motions(folder)
    of_text(folder)
    for each in sorted(folder.glob("*.png")):
        print(f"{each.name}: {each.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
