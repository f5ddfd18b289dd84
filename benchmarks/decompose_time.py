"""How long does a rewrite take, and how does that grow with the length of the sequences?"""

from __future__ import annotations

import warnings

import torch
from timing import arguments, exponent, interleaved, publish
from torch import nn

import rewriter

NAMES = ("rolled", "flat", "torch.export")


def main() -> None:
    """Time both levels, and torch.export's decomposition, for several lengths."""
    options = arguments("Time of a rewrite: rolled, flat, and torch.export's decomposition.")
    warnings.simplefilter("ignore")
    lengths = (2, 4) if options.quick else (50, 100, 200, 400)
    rows, records, notes = [], [], []
    for layers in (1,) if options.quick else (1, 2):
        torch.manual_seed(0)
        model = nn.LSTM(8, 16, num_layers=layers, batch_first=True).eval()
        # The peer takes minutes; one layer shows how it compares.
        names = NAMES if layers == 1 else NAMES[:2]
        medians: dict[str, list[float]] = {name: [] for name in names}
        for length in lengths:
            x = torch.randn(2, length, 8)
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
            rows.append((str(layers), str(length), *shown))
            records.append({"layers": layers, "T": length} | {f"{name}_s": seconds[name] for name in names})
        growth = ", ".join(f"{name} T^{exponent(lengths, medians[name]):.2f}" for name in names)
        notes.append(f"growth with {layers} layer(s): {growth}")
    header = ("layers", "T", *(f"{name} s" for name in NAMES))
    publish("decompose_time", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
