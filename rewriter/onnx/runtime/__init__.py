"""onnxruntime in a process of its own."""
