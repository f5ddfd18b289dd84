"""Tests of ``rewriter.onnx``."""
