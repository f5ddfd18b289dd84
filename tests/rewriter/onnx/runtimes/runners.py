"""Run files in one runtime, in a process that knows neither torch nor this library.

Run as a script, with the name of a runtime and a folder; prints, as JSON, the worst difference of each file
to torch, or what the runtime says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _onnxruntime(path: str, x: Array) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def _openvino(path: str, x: Array) -> list[Any]:
    import openvino

    # On some processors it computes in bfloat16 unless it is told.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([x])
    return [found[k] for k in range(len(compiled.outputs))]


def _tract(path: str, x: Array) -> list[Any]:
    import tract

    found = tract.onnx().load(path).into_model().into_runnable().run([x])
    return [each.to_numpy() for each in found]


def _opencv(path: str, x: Array) -> list[Any]:
    import cv2

    network = cv2.dnn.readNetFromONNX(path)
    network.setInput(x)
    return list(network.forward(network.getUnconnectedOutLayersNames()))


def _tinygrad(path: str, x: Array) -> list[Any]:
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(path)
    found = runner({next(iter(runner.graph_inputs)): Tensor(x)})
    return [each.numpy() for each in found.values()]


#: How each runtime runs a file, and its distribution and module.
RUNNERS: dict[str, tuple[Callable[[str, Array], list[Any]], str, str]] = {
    "onnxruntime": (_onnxruntime, "onnxruntime", "onnxruntime"),
    "OpenVINO": (_openvino, "openvino", "openvino"),
    "tract": (_tract, "tract", "tract"),
    "OpenCV": (_opencv, "opencv-python-headless", "cv2"),
    "tinygrad": (_tinygrad, "tinygrad", "tinygrad"),
}
#: Those that have Scan.
WITH_SCAN = ("onnxruntime", "OpenVINO", "tract")


def difference(run: Callable[[str, Array], list[Any]], path: Path) -> float | str:
    """Return the worst difference to torch, relative to max(1, max |torch|), or an error's text."""
    numbers = np.load(path.with_suffix(".npz"))
    expected = [numbers[f"y{k}"] for k in range(len(numbers.files) - 1)]
    try:
        found = [np.asarray(each) for each in run(str(path), numbers["x"])]
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    if [each.shape for each in found] != [each.shape for each in expected]:
        return f"shapes {[each.shape for each in found]}"
    pairs = zip(expected, found, strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())) for a, b in pairs)


def main() -> None:
    """Print the results."""
    name, folder = sys.argv[1:]
    run = RUNNERS[name][0]
    print(json.dumps({path.stem: difference(run, path) for path in sorted(Path(folder).glob("*.onnx"))}))


if __name__ == "__main__":
    main()
