"""Which module, and which line of the user's, a rewritten model first differs at."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from passes.errors import Decline
from passes.recurrent.lengths import copied
from passes.user_code.observe import Call, Observer, module_calls, observe
from passes.user_code.source import is_users
from passes.user_code.structure import tensors_in

#: Of a call.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Differences that are none of rounding.
_LARGE = 1e-3


def first_difference(original: nn.Module, rewritten: nn.Module, arguments: Arguments) -> str:
    """Return ``", first in MODULE (FILE:LINE)"`` for what differs first; ``""`` for nothing.

    The line is that of the call that gives other numbers, where both run it, else the begin of the forward.

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
            line = _first_line(original, rewritten, arguments)
            return f", first in {name or 'the model itself'}{line or place_of(modules.get(name))}"
    return ""


class _Lines(Observer):
    """Keeps the floating point tensors that each line of the user's gave last, by module."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, list[Tensor]] = {}
        self.all: dict[str, list[Tensor]] = {}

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = run(*args, **kwargs)
        if call.source:
            found = [each.detach().clone() for each in tensors_in(result) if each.is_floating_point()]
            # In the order in which lines are left.
            self.last.pop(call.source, None)
            self.last[call.source] = found
            self.all.setdefault(call.source, []).extend(found)
        return result


def _first_line(original: nn.Module, rewritten: nn.Module, arguments: Arguments) -> str:
    """Return the first line whose last call gives what the rewritten model computes nowhere at that line."""
    sides = _Lines(), _Lines()
    try:
        for model, lines in zip((original, rewritten), sides, strict=True):
            observe(model, lines, *copied(arguments))
    except Exception:
        # One that runs in training mode alone.
        return ""
    for line, tensors in sides[0].last.items():
        others = sides[1].all.get(line, [])
        if tensors and not any(not _differ([a], [b]) for a in tensors for b in others):
            return f" ({line})"
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


def made_at(model: nn.Module, name: str) -> str:
    """Return file and line at which a user's class makes one of its parts, ``""`` where that cannot be told.

    Args:
        model: the user's.
        name: qualified name of the part.

    Example:
        >>> made_at(nn.Sequential(nn.Tanh()), "0")
        ''

    """
    parts, modules = name.split(".") if name else [], dict(model.named_modules())
    for depth in range(len(parts) - 1, -1, -1):
        owner = type(modules.get(".".join(parts[:depth])))
        try:
            file, (lines, first) = inspect.getsourcefile(owner) or "", inspect.getsourcelines(owner)
        except (OSError, TypeError):
            # A class that was typed in, or made by code; a name that torch.compile puts around another.
            continue
        if not is_users(file):
            continue
        made = re.compile(
            rf"self\.{re.escape(parts[depth])}\s*(:[^=]*)?=[^=]|[\"']{re.escape(parts[depth])}[\"']"
        )
        line = next((k for k, each in enumerate(lines) if made.search(each)), 0)
        return f"{os.path.basename(file)}:{first + line}"
    return ""


def with_sources(model: nn.Module, declines: Sequence[Decline]) -> tuple[Decline, ...]:
    """Return declines that say where the user's code makes the modules.

    Example:
        >>> with_sources(nn.Tanh(), [Decline("", "Tanh", "a reason")])[0].source
        ''

    """
    return tuple(replace(each, source=made_at(model, each.name)) for each in declines)
