"""What operations are called."""

from __future__ import annotations

from typing import Any


def name_of_call(function: Any) -> str:
    """Return what a function or method is called in a report.

    Example:
        >>> import torch
        >>> name_of_call(torch.relu), name_of_call(torch.Tensor.T.__get__), name_of_call("tanh")
        ('relu', 'T', 'tanh')

    """
    if isinstance(function, str):
        return function
    name = str(getattr(function, "__name__", None) or type(function).__name__)
    owner = getattr(function, "__self__", None)
    if name in ("__get__", "__set__") and owner is not None:
        return str(getattr(owner, "__name__", name))
    return name.strip("_") if name.startswith("__") else name
