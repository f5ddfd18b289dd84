"""Which module, and which line of the user's, a rewritten model first differs at."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any

from torch import Tensor, nn

from passes.recurrent.lengths import copied
from passes.user_code.observe import module_calls
from passes.user_code.source import is_users

#: Of a call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Differences that are none of rounding.
_LARGE = 1e-3


def line_of(error: BaseException) -> str:
    """Return file and line of the user's innermost code that an error went through, ``""`` if none.

    Example:
        >>> line_of(ValueError())
        ''

    """
    users = [
        f"{os.path.basename(each.filename)}:{each.lineno}"
        for each in traceback.extract_tb(error.__traceback__)
        if is_users(each.filename)
    ]
    return users[-1] if users else ""


def failed_in(error: Exception) -> str:
    """Name the innermost module whose code an error came through.

    Example:
        >>> failed_in(ValueError())
        'the model itself'

    """
    running = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [each for each in running if isinstance(each, nn.Module)]
    names = {id(each): name for name, each in modules[0].named_modules()} if modules else {}
    known = [each for each in modules if names.get(id(each))]
    return f"{names[id(known[-1])]} ({type(known[-1]).__name__})" if known else "the model itself"


def first_difference(original: nn.Module, rewritten: nn.Module, arguments: Arguments) -> str:
    """Return ``", first in MODULE (FILE:LINE)"`` for the module whose outputs differ first; ``""`` for none.

    Example:
        >>> import torch
        >>> first_difference(nn.Tanh(), nn.Tanh(), ((torch.ones(1),), {}))
        ''

    """
    try:
        expected, got = (_outputs(model, arguments) for model in (original, rewritten))
    except Exception:
        # Then what the models return has to say it alone.
        return ""
    modules = dict(original.named_modules())
    for name, tensors in expected.items():
        if name in got and _differ(tensors, got[name]):
            return f", first in {name or 'the model itself'}{place_of(modules.get(name))}"
    return ""


def _outputs(model: nn.Module, arguments: Arguments) -> dict[str, list[Tensor]]:
    """Return what each module returns when it is first called, innermost first."""
    found: dict[str, list[Tensor]] = {}
    for call in module_calls(model, *copied(arguments))[1]:
        found.setdefault(call.name, call.given)
    return found


def _differ(expected: list[Tensor], got: list[Tensor]) -> bool:
    if [each.shape for each in expected] != [each.shape for each in got]:
        return True
    for a, b in zip(expected, got, strict=True):
        if a.is_floating_point() and float((a - b).abs().max()) > _LARGE * max(float(a.abs().max()), 1e-30):
            return True
    return False


def place_of(module: nn.Module | None) -> str:
    """Return ``" (FILE:LINE)"`` of a module's forward, ``""`` unless that is the user's.

    Example:
        >>> place_of(nn.Tanh())
        ''

    """
    if module is None:
        return ""
    try:
        code = type(module).forward.__code__
        file = inspect.getsourcefile(type(module).forward) or ""
    except (AttributeError, TypeError):
        return ""
    return f" ({os.path.basename(file)}:{code.co_firstlineno})" if is_users(file) else ""
