"""How does the cost of stock ``shap.DeepExplainer`` grow with the length of the sequences?

The peer is what one would write by hand: the steps as modules that each hold the shared Linears as
children. Stock shap then hooks those Linears once per step, so T hooks run in each of T calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import shap
import torch
from timing import arguments, exponent, interleaved, publish
from torch import Tensor, nn

import rewriter

FEATURES, HIDDEN, REFERENCES = 4, 16, 10
NAMES = ("rolled", "flat", "by hand")


class LastState(nn.Module):
    """An LSTM and a linear head on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1)."""
        return self.head(self.lstm(x)[0][:, -1])


class Step(nn.Module):
    """One step as one would write it, with the shared Linears as children."""

    def __init__(self, from_x: nn.Linear, from_h: nn.Linear) -> None:
        super().__init__()
        self.from_x = from_x
        self.from_h = from_h
        self.i, self.f, self.o = nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()
        self.g, self.c = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new state."""
        i, f, g, o = (self.from_x(x) + self.from_h(h)).chunk(4, -1)
        c = self.f(f) * c + self.i(i) * self.g(g)
        return self.o(o) * self.c(c), c


class ByHand(nn.Module):
    """The same model with one :class:`Step` per time step.

    Args:
        model: whose weights to use.
        length: number of steps.

    """

    def __init__(self, model: LastState, length: int) -> None:
        super().__init__()
        from_x, from_h = nn.Linear(FEATURES, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN)
        from_x.weight, from_x.bias = model.lstm.weight_ih_l0, model.lstm.bias_ih_l0
        from_h.weight, from_h.bias = model.lstm.weight_hh_l0, model.lstm.bias_hh_l0
        self.steps = nn.ModuleList(Step(from_x, from_h) for _ in range(length))
        self.head = model.head

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1)."""
        h = c = x.new_zeros(x.shape[0], HIDDEN)
        for step, x_t in zip(self.steps, x.unbind(1), strict=True):
            h, c = step(x_t, h, c)
        return self.head(h)


def additivity_error(model: nn.Module, background: Tensor, x: Tensor, values: np.ndarray) -> float:
    """Return max |sum of attributions - (f(x) - E f)|."""
    with torch.no_grad():
        expected = (model(x) - model(background).mean(0)).numpy()
    return float(np.abs(values.sum((1, 2)) - expected).max())


def main() -> None:
    """Time one explanation for several lengths."""
    options = arguments("Growth of the cost of stock shap with the length of the sequences.")
    warnings.simplefilter("ignore")
    lengths = (3, 6) if options.quick else (50, 100, 200, 400)
    torch.manual_seed(0)
    model = LastState().eval()
    errors = dict.fromkeys(NAMES, 0.0)
    contestants: dict[tuple[str, int], Callable[[], object]] = {}
    for length in lengths:
        background, x = torch.randn(REFERENCES, length, FEATURES), torch.randn(2, length, FEATURES)
        models = {
            "rolled": rewriter.decompose(model),
            "flat": rewriter.decompose(model, x),
            "by hand": ByHand(model, length).eval(),
        }
        for name, each in models.items():
            explain = partial(shap.DeepExplainer(each, background).shap_values, x, check_additivity=False)
            errors[name] = max(errors[name], additivity_error(each, background, x, explain()))
            contestants[name, length] = explain
    # All lengths in each round: a busy minute would else pass for growth.
    times = interleaved(contestants, 1 if options.quick else 9)
    rows, records = [], []
    for length in lengths:
        seconds = {name: times[name, length].median for name in NAMES}
        shown = (text for s in seconds.values() for text in (f"{s:.3f}", f"{s / length * 1e3:.2f}"))
        rows.append((str(length), *shown))
        records.append({"T": length} | {f"{name}_s": s for name, s in seconds.items()})
    medians = {name: [times[name, length].median for length in lengths] for name in NAMES}
    growth = ", ".join(f"{name} T^{exponent(lengths, medians[name]):.2f}" for name in NAMES)
    inexact = ", ".join(f"{name} {errors[name]:.1e}" for name in NAMES)
    header = ("T", *(text for name in NAMES for text in (f"{name} s", "ms/T")))
    notes = [f"growth: {growth}", f"additivity error: {inexact}"]
    publish("shap_growth", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
