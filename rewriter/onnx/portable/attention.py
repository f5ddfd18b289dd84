"""Attention as torch.onnx takes it: over batch, heads, places and features."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


class FourAxes(TorchFunctionMode):
    """While active, ``scaled_dot_product_attention`` of fewer axes than four is that of four.

    Example:
        >>> import torch
        >>> with FourAxes():
        ...     nn.functional.scaled_dot_product_attention(*[torch.ones(2, 5, 3)] * 3).shape
        torch.Size([2, 5, 3])

    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over that one function."""
        named = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **named)
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | named
        missing = max(0, 4 - given["query"].dim())
        for name in ("query", "key", "value"):
            # A mask is broadcast to what it masks anyway.
            given[name] = given[name][(None,) * missing]
        found = func(**given, **dict(zip(("dropout_p", "is_causal"), args[4:], strict=False)))
        return found[(0,) * missing]
