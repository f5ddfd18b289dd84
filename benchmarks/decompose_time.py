"""How long does a rewrite take, and how does that grow with the length of the sequences?"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from problems.hand_written import HAND_WRITTEN
from timing import arguments, exponent, interleaved, publish
from torch import nn

import rewriter

NAMES = ("rolled", "flat", "torch.export")
# The peer takes minutes; these show how it compares.
WITH_PEER = ("nn.LSTM", "a loop over Linears")


def _lstm(layers: int) -> Callable[[int], nn.Module]:
    return lambda _: nn.LSTM(8, 16, num_layers=layers, batch_first=True)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "nn.LSTM": _lstm(1),
    "nn.LSTM, 2 layers": _lstm(2),
    **HAND_WRITTEN,
}


def main() -> None:
    """Time both levels, and torch.export's decomposition, for several lengths."""
    options = arguments("Time of a rewrite: rolled, flat, and torch.export's decomposition.")
    warnings.simplefilter("ignore")
    lengths = (2, 4) if options.quick else (50, 100, 200, 400)
    rows, records, notes = [], [], []
    for kind, build in MODELS.items():
        names = NAMES if kind in WITH_PEER else NAMES[:2]
        medians: dict[str, list[float]] = {name: [] for name in names}
        for length in lengths:
            torch.manual_seed(0)
            model, x = build(length).eval(), torch.randn(2, length, 8)
            contestants = {
                "rolled": lambda model=model: rewriter.decompose(model),
                "flat": lambda model=model, x=x: rewriter.decompose(model, x),
                "torch.export": lambda model=model, x=x: torch.export.export(
                    model, (x,)
                ).run_decompositions(),
            }
            times = interleaved({name: contestants[name] for name in names}, 1 if options.quick else 3)
            seconds = {name: time.median for name, time in times.items()}
            for name in names:
                medians[name].append(seconds[name])
            shown = (f"{seconds[name]:.3f}" if name in seconds else "-" for name in NAMES)
            rows.append((kind, str(length), *shown))
            records.append({"model": kind, "T": length} | {f"{name}_s": seconds[name] for name in names})
        growth = ", ".join(f"{name} T^{exponent(lengths, medians[name]):.2f}" for name in names)
        notes.append(f"growth, {kind}: {growth}")
    header = ("model", "T", *(f"{name} s" for name in NAMES))
    publish("decompose_time", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
