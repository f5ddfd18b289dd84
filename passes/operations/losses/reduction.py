"""What losses make of the loss of each element, and on what the lowerings of all of them agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from passes.operations.contract import Lowering, Plain, Textbook, Varies, is_plain

# As torch.ops.aten has them.
_NUMBERED = {0: "none", 1: "mean", 2: "sum"}
Losses = Callable[..., Any]


def reduced(losses: Any, reduction: str) -> Any:
    """Return losses, their mean or their sum.

    Example:
        >>> import torch
        >>> reduced(torch.tensor([1.0, 2.0]), "sum")
        tensor(3.)

    """
    if reduction == "mean":
        return losses.mean()
    if reduction == "batchmean":
        alone = isinstance(losses, Tensor) and losses.dim() == 0
        return losses if alone else losses.sum() / losses.shape[0]
    return losses.sum() if reduction == "sum" else losses


def reduction_named(reduction: Any) -> Any:
    """Return the name of a reduction that may have a number.

    Example:
        >>> reduction_named(1), reduction_named("sum")
        ('mean', 'sum')

    """
    return _NUMBERED.get(reduction, reduction) if isinstance(reduction, int) else reduction


def loss(of_each: Losses, operands: tuple[str, ...], *options: str, reduction: str = "mean") -> Lowering:
    """Return what lowers a loss that is made of operations which have rules.

    Args:
        of_each: takes the operands, None for those that are not given, and the options; returns a loss for
            each element, of which torch takes the mean or the sum.
        operands: names of the tensors.
        options: names of what has to be known before the model runs.
        reduction: the default.

    """

    def lower(varies: Varies, /, **arguments: Any) -> Textbook | None:
        taken = reduction_named(arguments.pop("reduction", reduction))
        # An option that is not used may be unknown.
        arguments = {name: each for name, each in arguments.items() if name in (*options, *operands) or each}
        tensors = {name: arguments.pop(name, None) for name in operands}
        if not (set(arguments) <= set(options) and all(map(is_plain, (taken, *arguments.values())))):
            return None
        given = tuple(name for name, each in tensors.items() if each is not None)
        function = partial(_call, of_each, operands, given, arguments, taken)
        return Plain(function), tuple(tensors[name] for name in given)

    return lower


def _call(
    of_each: Losses,
    names: tuple[str, ...],
    given: tuple[str, ...],
    options: dict[str, Any],
    reduction: str,
    *operands: Any,
) -> Any:
    by_name = dict(zip(given, operands, strict=True))
    return reduced(of_each(*(by_name.get(name) for name in names), **options), reduction)
