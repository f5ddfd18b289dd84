"""Which calls write numbers into their first argument, and what computes the same out of place."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.operations.catalogue import operation_of
from passes.operations.names import IN_PLACE, in_place_name
from passes.operations.operation import Kind, Operation

#: ``a += b`` and its kind, by what computes the same out of place.
OPERATORS: Mapping[Any, Any] = {
    getattr(operator, name): getattr(operator, plain) for name, plain in IN_PLACE.items()
}


def writes_first(function: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether a call writes numbers into its first argument, as far as its name or an option says so.

    Args:
        function: what a graph calls or a ``TorchFunctionMode`` sees, or the name of a method.
        args: of the call.
        kwargs: of the call.

    Example:
        >>> [writes_first(each) for each in ("mul_", operator.iadd, Tensor.__setitem__, "squeeze_", "mul")]
        [True, True, True, False, False]
        >>> writes_first(F.relu, ("x",), {"inplace": True})
        True

    """
    if in_place_name(function) is None:
        return asks_to_write(function, args, kwargs or {})
    operation = operation_of(function)
    return operation is None or not (operation.moves or operation.kind is Kind.CUT)


def asks_to_write(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call says ``inplace=True``."""
    place = place_of_inplace(function)
    if place is None:
        return False
    return kwargs.get("inplace", args[place] if len(args) > place else False) is True


@functools.cache
def place_of_inplace(function: Callable[..., Any]) -> int | None:
    """Return where a function of torch.nn.functional takes ``inplace``, None if it does not.

    Example:
        >>> place_of_inplace(F.relu), place_of_inplace(F.softmax)
        (1, None)

    """
    if not isinstance(function, FunctionType) or not function.__module__.startswith("torch.nn.functional"):
        return None
    names = list(inspect.signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


def without_inplace(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, out of place.

    Example:
        >>> without_inplace(F.relu, ("x", True), {}), without_inplace(F.celu, ("x",), {"inplace": True})
        ((('x', False), {}), (('x',), {'inplace': False}))

    """
    place = place_of_inplace(function)
    named = {name: name != "inplace" and value for name, value in kwargs.items()}
    if place is None or len(args) <= place:
        return args, named
    return (*args[:place], False, *args[place + 1 :]), named


def out_of_place(function: Any) -> Any:
    """Return what computes out of place what ``function`` writes, None if there is no such value.

    Example:
        >>> out_of_place("mul_"), out_of_place(torch.exp_) is torch.exp, out_of_place("uniform_")
        ('mul', True, None)

    """
    operation = operation_of(function)
    if operation is not None and (operation.moves or _is_random(operation)):
        return None
    if function in OPERATORS:
        return OPERATORS[function]
    name = in_place_name(function)
    if name is None or (operation is not None and operation.kind is Kind.CUT):
        return None
    if isinstance(function, str):
        return name if hasattr(Tensor, name) else None
    if isinstance(function, torch._ops.OpOverload):
        packet = getattr(torch.ops.aten, name, None)
        return getattr(packet, function._overloadname, None)
    spaces = (space for space in (torch, F) if getattr(space, f"{name}_", None) is function)
    return next((getattr(space, name) for space in spaces if hasattr(space, name)), None)


def is_linear_in_place(function: Any) -> bool:
    """Whether what a call writes needs no rule, whatever varies.

    Example:
        >>> is_linear_in_place("add_"), is_linear_in_place("mul_"), is_linear_in_place(operator.setitem)
        (True, False, True)

    """
    operation = operation_of(function)
    if operation is None or operation.kind is not Kind.LINEAR:
        return False
    return operation is operation_of(operator.setitem) or not (operation.fixed or operation.unless)


def _is_random(operation: Operation) -> bool:
    return operation.kind is Kind.RANDOM or "training" in operation.parameters
