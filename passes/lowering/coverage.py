"""Which calls and modules are linear in what varies, hence need no rule, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.operations.catalogue import arguments_of, operation_of, why_not_linear
from passes.operations.contract import Varies
from passes.operations.linear.records import BATCH_NORMS, INSTANCE_NORMS, LINEAR_MODULES
from passes.operations.names import key_of
from passes.operations.operation import CUTS, NO_RULE, RANDOM, ROWS, Kind
from passes.user_code.hooks import has_hooks


def why_no_rule_for_module(module: nn.Module) -> str | None:
    """Return why a module is not linear when it is evaluated, or None if it is.

    Example:
        >>> why_no_rule_for_module(nn.Linear(1, 1)), why_no_rule_for_module(nn.Softmax(-1))
        (None, 'has no rule')
        >>> why_no_rule_for_module(nn.BatchNorm1d(1, track_running_stats=False))
        'mixes rows of the batch (batch statistics)'

    """
    kind = type(module)
    if has_hooks(module):
        return "has hooks, which may change what it returns"
    if kind in BATCH_NORMS:
        return ROWS if module.running_mean is None else None
    if kind in LINEAR_MODULES or (kind in INSTANCE_NORMS and module.track_running_stats):
        return None
    base = next((each for each in kind.__mro__ if each.__module__.startswith("torch.nn.")), nn.Module)
    if base not in (kind, nn.Module) and not kind.__module__.startswith("passes."):
        return f"{NO_RULE}: a subclass of {base.__name__} may compute anything"
    return NO_RULE


def why_no_rule_for_call(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], varies: Varies, discrete: Varies
) -> str | None:
    """Return why a call is not linear in the tensors that vary, or None if it is.

    Args:
        function: a function of torch's or Python's, or the name of a method.
        args: positional arguments, with the object of a method first.
        kwargs: keyword arguments.
        varies: whether an argument is, or holds, a tensor that varies with the inputs.
        discrete: whether it is, or holds, a mask, index or number that is read off such tensors.

    Example:
        >>> import torch
        >>> def varies(argument): return argument == "x"
        >>> def discrete(argument): return argument == "mask"
        >>> why_no_rule_for_call(torch.mul, ("x", 2.0), {}, varies, discrete)
        >>> why_no_rule_for_call(torch.mul, ("x", "x"), {}, varies, discrete)
        'a product of operands that depend on the input'
        >>> why_no_rule_for_call("masked_fill", ("x", "mask", 0.0), {}, varies, discrete)
        'a mask, index or number that depends on the input'

    """
    if _builds(function):
        return None
    if function is getattr:
        if not hasattr(Tensor, str(args[1])):
            # A field of an object that holds tensors.
            return None
        function = str(args[1])
    if isinstance(function, type) and issubclass(function, torch.autograd.Function):
        return f"{NO_RULE}: an autograd Function of the model's own, which may compute anything"
    operation = operation_of(function)
    if operation is None:
        return NO_RULE if key_of(function) else f"{NO_RULE}: a function of the model's own"
    if operation.kind is Kind.RANDOM:
        return RANDOM
    if operation.kind is Kind.CUT:
        return CUTS
    return why_not_linear(operation, arguments_of(operation, function, args, kwargs), varies, discrete)


def _builds(function: Any) -> bool:
    """Whether a function puts its arguments into an object."""
    return isinstance(function, type) and (
        issubclass(function, tuple | list | dict) or is_dataclass(function)
    )
