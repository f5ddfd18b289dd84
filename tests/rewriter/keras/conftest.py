"""What of this folder belongs to another process: one process has Keras on one backend."""

collect_ignore = ["on_torch.py"]
