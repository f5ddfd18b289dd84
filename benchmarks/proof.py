"""What does a proof cost, in forward passes of the original?"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from timing import arguments, interleaved, publish
from torch import Tensor, nn

import rewriter

SIZES = ((20, 32, 8), (100, 64, 32), (200, 128, 32))


class Classifier(nn.Module):
    """A recurrent layer with a head."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classify sequences, (B, T, 8)."""
        logits: Tensor = self.head(self.rnn(x)[0][:, -1])
        return logits


def main() -> None:
    """Time decompose, first calls and first explanations with a proof and without."""
    options = arguments("Cost of a proof: decompose, a first call, a first explanation.")
    warnings.simplefilter("ignore")
    rows, records = [], []
    for length, hidden, batch in SIZES[:1] if options.quick else SIZES:
        torch.manual_seed(0)
        model, x = Classifier(hidden).eval(), torch.randn(batch, length, 8)
        background = torch.randn(batch, length, 8)
        contestants = {
            "forward": partial(model, x),
            "decompose": partial(rewriter.decompose, model, x, prove=False),
            "decompose, proven": partial(rewriter.decompose, model, x),
            "first call": lambda model=model, x=x: rewriter.decompose(model, prove=False)(x),
            "first call, proven": lambda model=model, x=x: rewriter.decompose(model)(x),
            "explanation": lambda model=model, x=x, b=background: rewriter.DeepExplainer(
                model, b, progress=False
            ).shap_values(x),
        }
        times = interleaved(contestants, 1 if options.quick else 7)
        seconds = {name: time.median for name, time in times.items()}
        forward = seconds["forward"]
        added = [seconds[f"{name}, proven"] - seconds[name] for name in ("decompose", "first call")]
        shown = (
            f"{each:.1f}" for each in (*(each / forward for each in added), seconds["explanation"] / forward)
        )
        rows.append((f"{length}, {hidden}, {batch}", f"{1000 * forward:.2f}", *shown))
        records.append(
            {"T": length, "H": hidden, "B": batch} | {f"{key}_s": value for key, value in seconds.items()}
        )
    header = ("T, H, B", "forward ms", "added to decompose", "added to a first call", "first explanation")
    notes = ["in forward passes of the original, gradients recorded; an explanation holds its proof"]
    publish("proof", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
