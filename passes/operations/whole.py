"""Reductions over all dimensions: in code that runs, of one row alone; they become one over a dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from passes.operations.contract import Plain, Textbook


def is_whole(dim: Any) -> bool:
    """Whether an argument names no dimension, so that a reduction is one over all.

    Example:
        >>> is_whole(None), is_whole(()), is_whole(0)
        (True, True, False)

    """
    return dim is None or (isinstance(dim, list | tuple) and not dim)


def lower_whole(reduce: Callable[..., Any], *operands: Any, keepdim: Any = False) -> Textbook | None:
    """Lower what reduces all numbers of its operands.

    In a graph it reduces the rows of a batch together, and stays. Code that runs may hold a single row, which
    nobody knows; that rows influence each other is seen where a model is explained, and refused.

    Args:
        reduce: takes operands of one dimension, over which it goes; returns a number, or several.
        operands: what is reduced.
        keepdim: whether the dimensions stay, with size 1.

    Example:
        >>> import torch
        >>> module, operands = lower_whole(lambda x: torch.amax(x, -1), torch.ones(2, 3), keepdim=True)
        >>> module(*operands)
        tensor([[1.]])

    """
    if not all(isinstance(each, Tensor) for each in operands) or not isinstance(keepdim, bool):
        return None
    rank = max(each.dim() for each in operands)
    return Plain(partial(_of_line, reduce, (1,) * rank if keepdim else ())), operands


def _of_line(reduce: Callable[..., Any], shape: tuple[int, ...], *operands: Any) -> Any:
    found = reduce(*(each.reshape(-1) for each in operands))
    if isinstance(found, Tensor):
        return found.reshape(shape)
    parts = [each.reshape(shape) for each in found]
    return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
