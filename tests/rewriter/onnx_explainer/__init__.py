"""Tests of ``rewriter.onnx_explainer``."""
