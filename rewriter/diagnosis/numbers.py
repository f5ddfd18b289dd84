"""Numbers of two runs, side by side: those of tensors, and those that Python code has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return tensors that nobody writes to, without a history.

    Example:
        >>> x = torch.ones(1, requires_grad=True)
        >>> copies([x])
        [tensor([1.])]

    """
    return [each.detach().clone() for each in tensors]


def differ(a: list[Any], b: list[Any]) -> bool:
    """Whether two lists of numbers, or of tensors, are not the same.

    Example:
        >>> differ([1, float("nan")], [1, float("nan")]), differ([torch.ones(1)], [torch.zeros(1)])
        (False, True)

    """
    return len(a) != len(b) or any(not _same(x, y) for x, y in zip(a, b, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(a == b) or (a != a and b != b)
