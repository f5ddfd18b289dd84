"""How much slower than the native layer are its decompositions: ours, torch.export's and torch.ao's?

Every number is a ratio to the native layer in the same round, so the machine's speed cancels.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from timing import arguments, interleaved, publish
from torch import Tensor, nn

import rewriter

PEERS = ("rolled", "flat", "torch.export", "torch.ao")


class Case(NamedTuple):
    """One layer and the size of its input.

    Args:
        kind: the class of the layer.
        B: batch.
        T: length.
        I: input features.
        H: hidden features.
        options: further arguments of the layer.

    """

    kind: type[nn.RNNBase]
    B: int
    T: int
    I: int  # noqa: E741
    H: int
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        options = "".join(f", {key}={value}" for key, value in self.options.items())
        return f"{self.kind.__name__} B={self.B} T={self.T} I={self.I} H={self.H}{options}"


STACKED = {"num_layers": 2, "bidirectional": True}
CASES = [
    Case(nn.LSTM, 64, 100, 64, 128),
    Case(nn.GRU, 64, 100, 64, 128),
    Case(nn.LSTM, 8, 30, 8, 16),
    Case(nn.GRU, 8, 30, 8, 16),
    Case(nn.LSTM, 16, 50, 32, 64, STACKED),
    Case(nn.GRU, 16, 50, 32, 64, STACKED),
]
QUICK = [Case(nn.LSTM, 2, 4, 3, 4), Case(nn.GRU, 2, 4, 3, 4, STACKED)]


def forms(case: Case) -> tuple[dict[str, nn.Module], Tensor]:
    """Return the native layer and its decompositions, all with the same weights, and an input."""
    torch.manual_seed(0)
    native = case.kind(case.I, case.H, batch_first=True, **case.options).eval()
    x = torch.randn(case.B, case.T, case.I)
    made = {
        "native": native,
        "rolled": rewriter.decompose(native),
        "flat": rewriter.decompose(native, x),
        "torch.export": torch.export.export(native, (x,)).run_decompositions().module(),
    }
    if case.kind is nn.LSTM:
        configured = copy.deepcopy(native)
        # from_float demands some configuration; unprepared, the layer stays in float all the same.
        configured.qconfig = torch.ao.quantization.default_qconfig
        made["torch.ao"] = torch.ao.nn.quantizable.LSTM.from_float(configured).eval()
    return made, x


def forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Run the layer only."""
    return lambda: layer(x)


def without_grad(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Run the layer as in inference."""

    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def backward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """Run the layer as in training."""

    def run() -> None:
        layer(x)[0].sum().backward()

    return run


MODES = {"forward, no_grad": without_grad, "forward": forward, "forward + backward": backward}


def main() -> None:
    """Time every case in every mode."""
    options = arguments("Forward and backward time of decomposed layers as ratios to the native one.")
    warnings.simplefilter("ignore")
    rows, records = [], []
    worst: dict[str, float] = {}
    for case in QUICK if options.quick else CASES:
        layers, x = forms(case)
        expected = layers["native"](x)[0]
        for name, layer in layers.items():
            difference = float((layer(x)[0] - expected).abs().max())
            worst[name] = max(worst.get(name, 0.0), difference)
        for mode, prepare in MODES.items():
            times = interleaved(
                {name: prepare(layer, x) for name, layer in layers.items()}, 2 if options.quick else 30
            )
            ratios = {name: time.ratio_to(times["native"]) for name, time in times.items()}
            cells = [f"{ratios[name]:.2f}" if name in ratios else "-" for name in PEERS]
            rows.append((str(case), mode, f"{times['native'].median * 1e3:.2f}", *cells))
            records.append({"case": str(case), "mode": mode, "native_s": times["native"].median} | ratios)
    notes = ["Times as multiples of the native layer's: medians of interleaved rounds."]
    notes += [f"{name}: differs from native by at most {worst[name]:.1e}" for name in PEERS if name in worst]
    publish("forward", options, ("layer", "mode", "native ms", *PEERS), rows, notes, records)


if __name__ == "__main__":
    main()
