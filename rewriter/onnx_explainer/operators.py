"""Operators that ONNX lacks, or has a better form of, in those that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


def convolution_backward(
    d: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what a convolution hands to its input: a transposed convolution, and the other way round."""
    if transposed:
        pulled = aten.convolution(d, weight, None, stride, padding, dilation, False, [0], groups)
        return pulled, None, None
    space = zip(x.shape[2:], d.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    missing = [
        size - ((count - 1) * step - 2 * edge + width * (kernel - 1) + 1)
        for size, count, kernel, step, edge, width in space
    ]
    pulled = aten.convolution(d, weight, None, stride, padding, dilation, True, missing, groups)
    return pulled, None, None


def _pooled_backward(
    d: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_padding: bool,
    divisor: int | None,
) -> Any:
    """Return what average pooling hands to its input: a transposed convolution with ones."""
    if ceil_mode:
        return NotImplemented
    space = len(kernel)
    stride = stride or kernel
    ones = torch.ones(1, 1, *kernel, dtype=d.dtype)
    none = [0] * space, [1] * space
    lead, size = x.shape[: x.dim() - space], x.shape[x.dim() - space :]
    if divisor is not None or count_padding:
        d = d / (divisor or torch.Size(kernel).numel())
    else:
        inside = torch.ones(1, 1, *size, dtype=d.dtype)
        d = d / aten.convolution(inside, ones, None, stride, padding, none[1], False, none[0], 1)[0, 0]
    rows = d.reshape(-1, 1, *d.shape[x.dim() - space :])
    missing = [
        n - ((count - 1) * step - 2 * edge + width)
        for n, count, step, edge, width in zip(size, rows.shape[2:], stride, padding, kernel, strict=True)
    ]
    pulled = aten.convolution(rows, ones, None, stride, padding, none[1], True, missing, 1)
    return pulled.reshape(*lead, *size)


def cumprod(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Return products of all elements up to each: of 2, of 4, of 8, … neighbours."""
    x = x if dtype is None else x.to(dtype)
    reach = 1
    while reach < x.shape[dim]:
        before = x.narrow(dim, 0, x.shape[dim] - reach)
        x = torch.cat([x.narrow(dim, 0, reach), x.narrow(dim, reach, x.shape[dim] - reach) * before], dim)
        reach *= 2
    return x


def expm1(x: Tensor) -> Tensor:
    """Return ``exp(x) - 1`` with all its digits; torch.onnx would write just that difference."""
    return torch.tanh(x / 2) * (torch.exp(x) + 1)


def log1p(x: Tensor) -> Tensor:
    """Return ``log(1 + x)`` with all its digits.

    What is lost of ``x`` where 1 is added is put right by a factor (Kahan's; Goldberg 1991, theorem 4).
    """
    whole = 1 + x
    kept = whole - 1
    lossless = (kept == 0) | (whole == torch.inf)
    factor = torch.where(lossless, 1, x / torch.where(lossless, 1, kept))
    return torch.where(kept == 0, x, torch.log(whole) * factor)


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: _pooled_backward,
    aten.avg_pool3d_backward.default: _pooled_backward,
    aten.cumprod.default: cumprod,
    aten.expm1.default: expm1,
    aten.log1p.default: log1p,
}


class FlatLinears(TorchFunctionMode):
    """While active, a Linear takes all its rows as one matrix; torch may repeat its weights for each step.

    Example:
        >>> with FlatLinears():
        ...     torch.nn.Linear(3, 2)(torch.ones(4, 5, 3)).shape
        torch.Size([4, 5, 2])

    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Take over that one function."""
        if func is torch.nn.functional.linear and not kwargs and args[0].dim() > 2:
            x, weight, *bias = args
            rows = func(x.reshape(-1, x.shape[-1]), weight, *bias)
            return rows.reshape(*x.shape[:-1], rows.shape[-1])
        return func(*args, **(kwargs or {}))
