"""What the adapters to other people's explainers share."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from passes.leaves import Atom
from rewriter.compiler.islands import islands_of

_MARK = "_rewriter_guard"
# Two explanations of one model at a time would take each other's hooks for the model's own.
EXPLAINING = threading.RLock()


class Given(NamedTuple):
    """What a guarded method is to be called with: the owner, and the other arguments."""

    owner: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


#: Takes what a method is called with, and is active while it runs, with what it yields.
Guard = Callable[[Given], AbstractContextManager[Given]]


def holds_atoms(model: object) -> bool:
    """Whether any part of ``model`` was rewritten, or is while it runs."""
    if not isinstance(model, nn.Module):
        return False
    return any(isinstance(module, Atom) for module in model.modules()) or bool(islands_of(model))


def guard_method(owner: type, method: str, guard: Guard) -> None:
    """Run ``owner.method`` inside ``guard``, with what that yields, from now on; once is enough."""
    original = getattr(owner, method)
    if not getattr(original, _MARK, False):
        setattr(owner, method, _guarded(original, guard))


def _guarded(original: Callable[..., Any], guard: Guard) -> Any:
    @functools.wraps(original)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with guard(Given(self, args, kwargs)) as given:
            return original(given.owner, *given.args, **given.kwargs)

    setattr(guarded, _MARK, True)
    guarded.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    # Others call what is wrapped, past what is around it: captum's NoiseTunnel does.
    inner = getattr(original, "__wrapped__", None)
    if inner is None:
        del guarded.__wrapped__
    else:
        guarded.__wrapped__ = _guarded(inner, guard)
    return guarded
