"""Names of what is added to a graph."""

from __future__ import annotations

from torch import nn


def free_name(model: nn.Module, name: str) -> str:
    """Return ``name``, with a suffix if the model has an attribute of that name."""
    free, k = name, 0
    while hasattr(model, free):
        k += 1
        free = f"{name}_{k}"
    return free
