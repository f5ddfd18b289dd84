"""The extra ``onnx``: model and explanation as files, and their certificate."""

from __future__ import annotations

import onnx
import onnxruntime
from models import built, sum_error

from rewriter import export_explainer_onnx, export_onnx, verify

model, background, x = built()
export_onnx(model, x, "model.onnx", loops=True)
assert not {"LSTM", "GRU", "RNN"} & {node.op_type for node in onnx.load("model.onnx").graph.node}
assert verify("model.onnx")
export_explainer_onnx(model, background, "explainer.onnx")
session = onnxruntime.InferenceSession("explainer.onnx", providers=["CPUExecutionProvider"])
_, values, _ = session.run(None, {"x": x.numpy()})
assert sum_error(model, background, x, values) < 1e-6
