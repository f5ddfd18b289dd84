"""How large and how fast are exported files, beside torch.onnx's own export with the fused LSTM operator?"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from timing import arguments, interleaved, publish

from rewriter import export_onnx
from rewriter.onnx.torch_export import quiet

# Layer, T, I, H, layers, directions, form.
SIZES = [
    ("LSTM", 100, 32, 64, 1, 1, "Scan"),
    ("LSTM", 100, 32, 128, 1, 1, "Scan"),
    ("LSTM", 100, 32, 64, 2, 2, "Scan"),
    ("GRU", 100, 32, 64, 1, 1, "Scan"),
    ("LSTM", 200, 32, 64, 1, 1, "flat"),
]
QUICK = [("GRU", 3, 2, 4, 1, 1, "Scan"), ("LSTM", 3, 2, 4, 1, 1, "flat")]
BATCHES = (1, 32)
ROUNDS = 9
NOTES = [
    "Size: T,I,H,layers,directions. export: s, its checks included; of torch: over torch.onnx.export's time.",
    "file: KB; allowed: its size over 1.3 x the weights and 100 KB. load: s, in onnxruntime. ms: of the file",
    "for batches of 1 and 32; fused: over the time of torch.onnx's file, which has the fused operator. One",
    "thread, medians of 9 rounds, in turn.",
]


class Layer(nn.Module):
    """A recurrent layer, of which the outputs are taken.

    Args:
        kind: name of the layer's class.
        features: of the input.
        size: of the state.
        layers: how many.
        directions: 1 or 2.

    """

    def __init__(self, kind: str, features: int, size: int, layers: int, directions: int) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(
            features, size, layers, batch_first=True, bidirectional=directions == 2
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, directions x H)."""
        result: Tensor = self.layer(x)[0]
        return result


def torchs(model: nn.Module, x: Tensor, path: Path) -> None:
    """Let torch.onnx write a file with the fused operator."""
    # A bidirectional or stacked layer has its length frozen by it: the batch alone is free.
    with quiet():
        torch.onnx.export(
            model, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False
        )


def session_of(path: Path) -> tuple[Any, float]:
    """Load a file with one thread; return the session and how long it took."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    begin = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, time.perf_counter() - begin


def measure(
    kind: str, steps: int, features: int, size: int, layers: int, directions: int, form: str, rounds: int
) -> dict[str, Any]:
    """Write both files of one model and time them."""
    torch.manual_seed(0)
    model = Layer(kind, features, size, layers, directions).eval()
    x = torch.randn(2, steps, features)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.onnx"), Path(folder, "theirs.onnx")
        begin = time.perf_counter()
        report = export_onnx(model, x, ours, loops=form == "Scan")
        middle = time.perf_counter()
        torchs(model, x, theirs)
        end = time.perf_counter()
        (own, load), (fused, _) = session_of(ours), session_of(theirs)
        load = min(load, *(session_of(ours)[1] for _ in range(2)))
    record: dict[str, Any] = {
        "layer": kind,
        "size": f"{steps},{features},{size},{layers},{directions}",
        "form": form,
        "export": middle - begin,
        "of_torch": (middle - begin) / (end - middle),
        "bytes": report.size,
        "allowed": report.size / (1.3 * 4 * sum(each.numel() for each in model.parameters()) + 1e5),
        "load": load,
    }
    for batch in BATCHES:
        given = np.random.default_rng(0).normal(size=(batch, steps, features)).astype(np.float32)
        timed = interleaved(
            {
                name: partial(session.run, None, {session.get_inputs()[0].name: given})
                for name, session in (("own", own), ("fused", fused))
            },
            rounds,
        )
        record[f"ms_{batch}"] = 1e3 * timed["own"].median
        record[f"of_fused_{batch}"] = timed["own"].ratio_to(timed["fused"])
    return record


def main() -> None:
    """Time every size and publish the results."""
    options = arguments(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # Both import half of torch when they are first called.
        model, x = Layer("RNN", 2, 2, 1, 1).eval(), torch.randn(2, 3, 2)
        export_onnx(model, x, Path(folder, "ours.onnx"))
        torchs(model, x, Path(folder, "theirs.onnx"))
    records = [
        measure(*size, rounds=3 if options.quick else ROUNDS) for size in (QUICK if options.quick else SIZES)
    ]
    header = ("layer", "form", "size", "export", "of torch", "file", "allowed", "load", "ms B=1", "fused")
    header = (*header, "ms B=32", "fused")
    rows = [
        (
            each["layer"],
            each["form"],
            each["size"],
            f"{each['export']:.1f}",
            f"{each['of_torch']:.2f}",
            f"{each['bytes'] / 1e3:.0f}",
            f"{each['allowed']:.2f}",
            f"{each['load']:.2f}",
            f"{each['ms_1']:.2f}",
            f"{each['of_fused_1']:.2f}",
            f"{each['ms_32']:.1f}",
            f"{each['of_fused_32']:.2f}",
        )
        for each in records
    ]
    publish("onnx_export", options, header, rows, NOTES, records, folder="files")


if __name__ == "__main__":
    main()
