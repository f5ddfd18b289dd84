"""Operations that stand in a Keras model without a layer, such as ``a + b`` or ``keras.ops.mean(x)``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rewriter.keras.activations import ACTIVATIONS
from rewriter.keras.layers.contract import UnsupportedError

#: Takes the operation of Keras and what it is called with, and returns a function and its arguments.
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _same(function: Callable[..., Any]) -> Callable[[Any, Sequence[Any]], Call]:
    return lambda op, args: (function, tuple(args))


def _along(function: Callable[..., Any]) -> Callable[[Any, Sequence[Any]], Call]:
    """A reduction, over all dimensions but the batch's where no axis is named."""

    def call(op: Any, args: Sequence[Any]) -> Call:
        if op.axis is None:
            raise UnsupportedError(f"{type(op).__name__} mixes the rows of the batch: name an axis")
        axis = [op.axis] if isinstance(op.axis, int) else list(op.axis)
        return function, (args[0], axis, bool(op.keepdims))

    return call


def at(x: Tensor, key: Any) -> Tensor:
    """Return ``x[key]``; a file, which has no tuples, holds the key of several dimensions as a list."""
    return x[tuple(key) if isinstance(key, list) else key]


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Return ``torch.cat`` of the parts."""
    return torch.cat(list(parts), axis)


def piled(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Return ``torch.stack`` of the parts."""
    return torch.stack(list(parts), axis)


def in_rows(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return ``x`` in a shape whose first number is that of the rows, if it is -1 or None."""
    return x.reshape(x.shape[0] if shape[0] in (-1, None) else shape[0], *shape[1:])


def in_order(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    """Return ``x`` with its dimensions in another order."""
    return x.permute(tuple(axes) if axes is not None else tuple(reversed(range(x.dim()))))


def largest(x: Tensor, axis: list[int], keep: bool) -> Tensor:
    """Return the largest numbers along an axis."""
    return torch.amax(x, axis, keep)


def smallest(x: Tensor, axis: list[int], keep: bool) -> Tensor:
    """Return the smallest numbers along an axis."""
    return torch.amin(x, axis, keep)


def any_of(x: Tensor, axis: Sequence[int], keep: bool) -> Tensor:
    """Return whether any along an axis is true."""
    return torch.any(x, tuple(axis), keep)


def all_of(x: Tensor, axis: Sequence[int], keep: bool) -> Tensor:
    """Return whether all along an axis are true."""
    return torch.all(x, tuple(axis), keep)


def gelu(x: Tensor, approximate: bool) -> Tensor:
    """Return the Gaussian error unit of ``x``, by way of tanh or not."""
    return functional.gelu(x, approximate="tanh" if approximate else "none")


def filled_like(x: Tensor, value: float, dtype: str | None) -> Tensor:
    """Return a tensor of one value in the shape of another."""
    return torch.full_like(x, value, dtype=getattr(torch, dtype) if dtype else None)


def as_dtype(x: Tensor, dtype: str) -> Tensor:
    """Return the numbers in another dtype, by its name."""
    return x.to(getattr(torch, dtype))


OPERATIONS: Mapping[str, Callable[[Any, Sequence[Any]], Call]] = {
    "Add": _same(operator.add),
    "Subtract": _same(operator.sub),
    "Multiply": _same(operator.mul),
    "Divide": _same(operator.truediv),
    "TrueDivide": _same(operator.truediv),
    "Power": _same(operator.pow),
    "Negative": _same(operator.neg),
    "Matmul": _same(operator.matmul),
    "Absolute": _same(torch.abs),
    "Exp": _same(torch.exp),
    "Log": _same(torch.log),
    "Log1p": _same(torch.log1p),
    "Expm1": _same(torch.expm1),
    "Sqrt": _same(torch.sqrt),
    "Square": _same(torch.square),
    "Sin": _same(torch.sin),
    "Cos": _same(torch.cos),
    "Tanh": _same(torch.tanh),
    "Sigmoid": _same(torch.sigmoid),
    "Relu": _same(torch.relu),
    "Relu6": _same(functional.relu6),
    "LeakyRelu": lambda op, args: (functional.leaky_relu, (args[0], op.negative_slope)),
    "Elu": lambda op, args: (functional.elu, (args[0], op.alpha)),
    "Celu": lambda op, args: (functional.celu, (args[0], op.alpha)),
    "Selu": _same(functional.selu),
    "Gelu": lambda op, args: (gelu, (args[0], op.approximate)),
    "Silu": _same(functional.silu),
    "HardSilu": _same(functional.hardswish),
    "HardSigmoid": _same(functional.hardsigmoid),
    "Softplus": _same(functional.softplus),
    "Softsign": _same(functional.softsign),
    "LogSigmoid": _same(functional.logsigmoid),
    "LogSoftmax": lambda op, args: (torch.log_softmax, (args[0], op.axis)),
    "Einsum": lambda op, args: (torch.einsum, (op.subscripts, *args)),
    "Tan": _same(torch.tan),
    "Arctan": _same(torch.atan),
    "Sinh": _same(torch.sinh),
    "Cosh": _same(torch.cosh),
    "Reciprocal": _same(torch.reciprocal),
    "Moveaxis": lambda op, args: (torch.movedim, (args[0], op.source, op.destination)),
    "Cumsum": lambda op, args: (torch.cumsum, (args[0], op.axis)),
    "Maximum": _same(torch.maximum),
    "Minimum": _same(torch.minimum),
    "Where": _same(torch.where),
    "Equal": _same(operator.eq),
    "NotEqual": _same(operator.ne),
    "Greater": _same(operator.gt),
    "GreaterEqual": _same(operator.ge),
    "Less": _same(operator.lt),
    "LessEqual": _same(operator.le),
    "LogicalAnd": _same(torch.logical_and),
    "LogicalOr": _same(torch.logical_or),
    "LogicalNot": _same(torch.logical_not),
    "Any": _along(any_of),
    "All": _along(all_of),
    "OnesLike": lambda op, args: (filled_like, (args[0], 1, op.dtype)),
    "ZerosLike": lambda op, args: (filled_like, (args[0], 0, op.dtype)),
    "Cast": lambda op, args: (as_dtype, (args[0], op.dtype)),
    "GetItem": lambda op, args: (at, (args[0], args[1])),
    "Concatenate": lambda op, args: (joined, (args[0], op.axis)),
    "Stack": lambda op, args: (piled, (args[0], op.axis)),
    "ExpandDims": lambda op, args: (torch.unsqueeze, (args[0], op.axis)),
    "Squeeze": lambda op, args: (torch.squeeze, (args[0], op.axis)),
    "Reshape": lambda op, args: (in_rows, (args[0], op.newshape)),
    "Transpose": lambda op, args: (in_order, (args[0], op.axes)),
    "Flip": lambda op, args: (torch.flip, (args[0], [op.axis] if isinstance(op.axis, int) else op.axis)),
    "Softmax": lambda op, args: (torch.softmax, (args[0], op.axis)),
    "Clip": lambda op, args: (torch.clamp, (args[0], op.x_min, op.x_max)),
    "Mean": _along(torch.mean),
    "Sum": _along(torch.sum),
    "Max": _along(largest),
    "Min": _along(smallest),
}


def call_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Return the function that an operation is in torch, and what it is called with.

    Args:
        op: the operation of Keras.
        args: what it is called with, in terms of torch.
        kwargs: the same by name.

    Raises:
        UnsupportedError: for an operation that is not known.

    """
    kind = type(op).__name__
    if kind not in OPERATIONS or not type(op).__module__.startswith("keras.src."):
        raise UnsupportedError(
            f"the operation {kind} is not known here; write it as a layer, such as "
            f"{', '.join(sorted(set(ACTIVATIONS) & {kind.lower()})) or 'Dense, Multiply, Activation'}"
        )
    return OPERATIONS[kind](op, [*args, *kwargs.values()])
