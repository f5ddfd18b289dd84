"""Recurrences as ONNX nodes."""
